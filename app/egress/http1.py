"""HTTP/1.1 over one connection for one exchange, in httpx's types: what httpcore does, at a fifth of its CPU."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

# In bytes: the most that the head of a response may have, with those of 1xx responses before it, and that may come
# later without a byte of the body, such as trailers; and the bytes of the body at which no more is read before these
# are taken.
MAX_HEAD = 64 * 1024
HIGH_WATER = 64 * 1024
SENDING = "http11.send_request_headers.started"


class Connection(asyncio.Protocol):
    """A connection that is open; `exchange` uses it, and it is closed with the response."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: deque[bytes] = deque()
        self._unread_size = self._waiting_size = 0
        self._has_head = self._is_complete = self._is_paused = False
        self._failure: httpx.TransportError | None = None
        self._progress: asyncio.Future[None] | None = None

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request, whose body is bytes, and return the response once its head is here.

        Each wait is limited by the read timeout of the request. Its `trace` extension, if any, learns that bytes are
        about to leave, by the event that httpcore names; none leaves where the connection has broken before. Raises
        httpx.TransportError.
        """
        timeout = request.extensions.get("timeout", {}).get("read")
        try:
            message = _head(request) + await request.aread()
            if self._failure is not None:
                raise self._failure
            if (trace := request.extensions.get("trace")) is not None:
                await trace(SENDING, {})
            self._transport.write(message)
            while not self._has_head:
                await self._wait(timeout)
        except BaseException:
            self._transport.abort()
            raise
        return httpx.Response(self._status, headers=self._headers, stream=_Body(self._read(timeout), self._close))

    async def _read(self, timeout: float | None) -> AsyncIterator[bytes]:  # noqa: ASYNC109 - of each wait
        while self._chunks or not self._is_complete:
            if not self._chunks:
                await self._wait(timeout)
                continue
            chunk = self._chunks.popleft()
            self._waiting_size -= len(chunk)
            if self._is_paused and self._waiting_size < HIGH_WATER:
                self._is_paused = False
                self._transport.resume_reading()
            yield chunk

    async def _wait(self, timeout: float | None) -> None:  # noqa: ASYNC109 - as above
        """Wait until something has come. Raises what ended the connection before the response was complete."""
        if self._failure is not None:
            raise self._failure
        self._progress = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._progress
        except TimeoutError as error:
            raise httpx.ReadTimeout("nothing came in time") from error

    async def _close(self) -> None:
        self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if self._is_complete:
            return
        waiting = self._waiting_size
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._is_complete = True
        except HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"the response is no HTTP/1.1: {error}"))
        self._unread_size = 0 if self._waiting_size > waiting else self._unread_size + len(data)
        if self._unread_size > MAX_HEAD:
            self._fail(httpx.RemoteProtocolError(f"the response has more than {MAX_HEAD} bytes beside its body"))
        if self._waiting_size >= HIGH_WATER and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(httpx.ReadError(str(error)))
        elif self._has_head and not self._is_framed():
            self._is_complete = True
        else:
            self._fail(httpx.RemoteProtocolError("the receiver closed the connection before its response was complete"))
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if not self._is_complete:
            self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are left out (RFC 9110 §6.5.1): they would count only where they come in one piece with the head.
        if not self._has_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._is_complete:
            self._status = self._parser.get_status_code()
            # Others of 1xx come before the response.
            self._has_head = self._status >= 200 or self._status == 101

    def on_body(self, chunk: bytes) -> None:
        if not self._is_complete:
            self._chunks.append(chunk)
            self._waiting_size += len(chunk)

    def on_message_complete(self) -> None:
        self._is_complete = self._has_head

    def _is_framed(self) -> bool:
        """Whether the response says where it ends, other than by the end of the connection."""
        headers = httpx.Headers(self._headers)
        coding = headers.get("transfer-encoding")
        return "content-length" in headers if coding is None else coding.lower().endswith("chunked")

    def _fail(self, failure: httpx.TransportError) -> None:
        # What comes behind a complete response is not read.
        if not self._is_complete and self._failure is None:
            self._failure = failure
            self._transport.abort()

    def _wake(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)


class _Body(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._chunks, self._close = chunks, close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        await self._close()


def _head(request: httpx.Request) -> bytes:
    """The first line and the headers. Raises httpx.LocalProtocolError if they do not say what is sent."""
    if not isinstance(request.stream, httpx.ByteStream):
        raise httpx.LocalProtocolError("the body of the request is not bytes")
    lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1 or b"\0" in head:
        raise httpx.LocalProtocolError("a header holds a control character")
    return head
