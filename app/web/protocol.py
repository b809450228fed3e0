"""Connections: deadlines and limits on what a client sends and how it reads, which uvicorn does not have."""

import asyncio
import resource
import sys
from datetime import timedelta
from functools import partial

import structlog
from starlette.responses import Response
from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import (
    AppError,
    HeadersTooLarge,
    RequestTimeout,
    ShuttingDown,
    TooManyConnections,
    UnreadableRequest,
    UriTooLong,
)
from app.web import framing
from app.web.negotiation import request_id_of
from app.web.problems import problem

log = structlog.get_logger()

# File descriptors for everything but clients' connections: the database, the upstream, webhooks, files.
RESERVED_FILES = 200
# Beyond any Content-Length of a response.
MAX_LENGTH = sys.maxsize // 2


def _connections_allowed() -> int:
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(open_files - RESERVED_FILES, open_files // 2)


class HttpProtocol(HttpToolsProtocol):
    """
    Uvicorn's HTTP/1.1 with deadlines and limits: `Config(http=HttpProtocol, ws="none")`.

    Each timeout is for the whole of its part: single bytes do not extend it. A
    subclass may set others.
    """

    # From the connection, or the first byte of a later request, to the end of its headers.
    header_timeout = timedelta(seconds=10)
    # From there to the end of the body.
    body_timeout = timedelta(seconds=30)
    # For the rest of a body whose response was sent before its end.
    linger_timeout = timedelta(seconds=2)
    # For the client to read so much of a response that more can be written.
    write_timeout = timedelta(seconds=30)
    # For the request line and all headers; also for all trailers, and for one chunk extension.
    max_header_bytes = 16 * 1024
    max_connections = _connections_allowed()

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _receiving_body = False
    _body: framing.Chunks | framing.Counted
    _is_head_given = False
    _is_head_method = False
    _refusal: type[AppError] = UnreadableRequest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # What has come and was not given to the parser: half a head, or requests behind the one being answered.
        self._unparsed = bytearray()
        self.headers = []
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(TooManyConnections())
        else:
            self._set_deadline(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._set_write_deadline(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def _parse(self) -> None:
        """
        Give the parser what has come, one head or one body at a time.

        A pipelined request waits for the response to the one before, and its client for us to read on.
        """
        self._unset_keepalive_if_required()
        while self._unparsed and not self.transport.is_closing():
            if not self._receiving_body and not self._is_idle():
                self.flow.pause_reading()
                break
            try:
                piece = self._take_body() if self._receiving_body else self._take_head()
            except AppError as error:
                self._refuse(error)
                break
            if not piece:
                break
            super().data_received(piece)
        if self._deadline is None and self._has_no_timeout():
            self._set_deadline(self.header_timeout)

    def _take_head(self) -> bytes:
        """A whole head, as the parser should read it; empty if there is none yet. Raises AppError."""
        self._is_head_method = False
        del self._unparsed[: framing.begin(self._unparsed)]
        end = framing.end(self._unparsed)
        if end is None:
            if len(self._unparsed) > self.max_header_bytes:
                raise HeadersTooLarge if b"\n" in self._unparsed[: self.max_header_bytes] else UriTooLong
            framing.check_first_byte(self._unparsed)
            return b""
        head = self._take(end)
        self._is_head_method = head.startswith(b"HEAD ")
        self._is_head_given = True
        return framing.normalized(head)

    def _take_body(self) -> bytes:
        """What has come of a body, and nothing behind it. Raises AppError."""
        return self._take(self._body.length(self._unparsed))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unparsed[:size])
        del self._unparsed[:size]
        return taken

    def on_header(self, name: bytes, value: bytes) -> None:
        # Uvicorn would add trailers to the headers, which are checked already.
        if not self._receiving_body:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        try:
            self._check_size()
            framing.check(version, self.headers)
            self.url = framing.origin_form(self.parser.get_method(), self.url)
        except AppError as error:
            self._refusal = type(error)
            raise
        # RFC 9110 §10.1.1.
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        super().on_headers_complete()
        if version == "1.0":
            # The task that calls it has not begun.
            self.cycle.send = partial(_send_until_close, self.cycle, self.cycle.send)  # type: ignore[method-assign, arg-type]
        named, self._receiving_body = dict(self.headers), True
        is_chunked = b"transfer-encoding" in named
        length = int(named.get(b"content-length", 0))
        self._body = framing.Chunks(self.max_header_bytes) if is_chunked else framing.Counted(length)
        self._set_deadline(self.body_timeout)

    def _check_size(self) -> None:
        """Raise HeadersTooLarge or UriTooLong; UnreadableRequest for a head that the parser found inside of a body."""
        if not self._is_head_given:
            raise UnreadableRequest
        self._is_head_given = False
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) + size > self.max_header_bytes:
            raise HeadersTooLarge if size > len(self.url) else UriTooLong

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # A head that cannot be read after it has none of them.
        self._receiving_body, self.headers = False, []
        self._clear_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._set_write_deadline(self.write_timeout)
        elif self._receiving_body and self.cycle.response_complete:
            # The rest of the body is read and dropped: closing now would reset the connection before the client reads.
            self._set_deadline(self.linger_timeout)
        elif self._unparsed:
            self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_write_deadline(self.write_timeout)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_write_deadline(self.write_timeout if self.transport.is_closing() else None)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._set_write_deadline(self.write_timeout)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal())

    def shutdown(self) -> None:
        if self.config.timeout_graceful_shutdown is not None:
            # uvloop closes a transport only when all is written: a client that does not read would block the shutdown.
            self.loop.call_later(self.config.timeout_graceful_shutdown, self._drop_unread_response)
        # Do not wait for a body that may never come; wait for responses in progress.
        if self._receiving_body:
            self._refuse(ShuttingDown())
        else:
            super().shutdown()

    def _set_deadline(self, timeout: timedelta) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(timeout.total_seconds(), self._time_out, timeout)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self, timeout: timedelta) -> None:
        if self.flow.read_paused:
            # Not the client's fault: we do not read.
            self._set_deadline(timeout)
        else:
            self._refuse(RequestTimeout())

    def _set_write_deadline(self, timeout: timedelta | None) -> None:
        """Abort the connection if the client has not read by then: closing alone waits for it forever."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
        self._write_deadline = None
        if timeout is not None:
            self._write_deadline = self.loop.call_later(timeout.total_seconds(), self._drop_unread_response)

    def _drop_unread_response(self) -> None:
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()

    def _has_no_timeout(self) -> bool:
        # Empty lines begin no request, but end uvicorn's keep-alive timeout.
        return self._is_idle() and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, error: AppError) -> None:
        """Close the connection, with this error as the response if the client would take it for its own."""
        if self.transport.is_closing():
            return
        if self._may_respond():
            response = problem(error, self.app_state.get("prefix", ""))
            response.headers["X-Request-Id"] = request_id = request_id_of(self.headers)
            log.debug("request_refused", status=response.status_code, problem=error.slug, request_id=request_id)
            self.transport.write(_message(response, self.server_state.default_headers, self._is_head_method))
        self.transport.close()
        self._clear_deadline()
        self._set_write_deadline(self.write_timeout)

    def _may_respond(self) -> bool:
        return not self.cycle.response_started if self._receiving_body else self._is_idle()


async def _send_until_close(cycle: RequestResponseCycle, send: Send, message: Message) -> None:
    """Send to a client of HTTP/1.0, which knows no chunks: without a length the end of the connection ends the body."""
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
            cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
    elif cycle.expected_content_length > MAX_LENGTH and not message.get("more_body", False):
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)


def _message(response: Response, default_headers: list[tuple[bytes, bytes]], is_for_head: bool) -> bytes:
    headers = [*default_headers, *response.raw_headers, (b"connection", b"close")]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    body = b"" if is_for_head else response.body
    return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", body])
