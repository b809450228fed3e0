"""Connections: how long and how much a client may take to say what it wants, which uvicorn leaves open."""

import asyncio
import re
import resource
import sys

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import (
    AppError,
    HeadersTooLarge,
    RequestTimeout,
    ShuttingDown,
    TooManyConnections,
    UnreadableRequest,
)
from app.web.problems import problem

# Files that a process may need besides its clients' connections: the database, the upstream, receivers, the audio.
RESERVED_FILES = 200

_UPGRADE = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)


def _connections_allowed() -> int:
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(open_files - RESERVED_FILES, open_files // 2)


class HttpProtocol(HttpToolsProtocol):
    """
    Uvicorn's HTTP/1.1 with deadlines and caps on what comes in: `Config(http=HttpProtocol, ws="none")`.

    Spans are in seconds, each for the whole of its part: a byte now and then
    does not extend it. A subclass may set others.
    """

    header_timeout = 10.0  # from the connection, or the first byte of a later request, to the end of its headers
    body_timeout = 30.0  # from there to the end of the body
    linger_timeout = 2.0  # for the rest of a body that was answered before its end
    write_timeout = 30.0  # for the client to take so much of an answer that more can be written
    max_header_bytes = 16 * 1024  # the request line and all headers; also all trailers, or one chunk extension
    max_pipelined = 16  # requests that wait behind the one being answered
    max_connections = _connections_allowed()

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _receiving_body = False
    _unheeded_bytes = 0
    _refusal: type[AppError] = UnreadableRequest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(TooManyConnections())
        else:
            self._expect_within(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._await_reader(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unheeded_bytes += len(data)
        super().data_received(data if self._receiving_body else _without_upgrade(data))
        if self._unheeded_bytes > self.max_header_bytes:
            self._refuse(HeadersTooLarge())
        elif self._deadline is None and self._is_forgotten():
            self._expect_within(self.header_timeout)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.max_pipelined:
            raise UnreadableRequest
        super().on_message_begin()
        if self._deadline is None:
            self._expect_within(self.header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Uvicorn would add trailers to headers that were judged already.
        if not self._receiving_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.max_header_bytes:
            self._refusal = HeadersTooLarge
            raise HeadersTooLarge
        super().on_headers_complete()
        self._receiving_body = True
        self._expect_within(self.body_timeout)

    def on_body(self, body: bytes) -> None:
        self._unheeded_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving_body = False
        self._unheeded_bytes = 0
        self._expect_nothing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader(self.write_timeout)
        elif self._receiving_body and self.cycle.response_complete:
            # What still comes is dropped, so that the client reads its answer instead of a reset.
            self._expect_within(self.linger_timeout)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader(self.write_timeout)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._await_reader(self.write_timeout if self.transport.is_closing() else None)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader(self.write_timeout)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal())

    def shutdown(self) -> None:
        if self.config.timeout_graceful_shutdown is not None:
            # uvloop ends only when all is written, so a client that does not read would hold the process for ever.
            self.loop.call_later(self.config.timeout_graceful_shutdown, self._drop_unread_answer)
        # The stop should not wait for a body that may never come; what is being answered is waited for.
        if self._receiving_body and not self.pipeline:
            self._refuse(ShuttingDown())
        else:
            super().shutdown()

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._lose_patience, seconds)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _lose_patience(self, seconds: float) -> None:
        if self.flow.read_paused:
            # The client is waiting for us.
            self._expect_within(seconds)
        else:
            self._refuse(RequestTimeout())

    def _await_reader(self, seconds: float | None) -> None:
        """Give a client that does not read so long; closing alone would wait for it for ever."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
        self._write_deadline = None if seconds is None else self.loop.call_later(seconds, self._drop_unread_answer)

    def _drop_unread_answer(self) -> None:
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()

    def _is_forgotten(self) -> bool:
        # Empty lines begin no request, but uvicorn no longer waits for one after them.
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _refuse(self, error: AppError) -> None:
        """Answer with this error if the client would take it for its answer, and close."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            self.transport.write(_message(problem(error), self.server_state.default_headers))
        self.transport.close()
        self._expect_nothing()
        self._await_reader(self.write_timeout)

    def _may_answer(self) -> bool:
        if self._receiving_body:
            return not self.cycle.response_started and not self.pipeline
        return self.cycle is None or self.cycle.response_complete


def _without_upgrade(data: bytes) -> bytes:
    # Java's HttpClient offers h2c with a POST's body behind it. One may ignore the offer; the parser drops the body.
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nX-Declined-Upgrade:", head) + end + rest


def _message(response: Response, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    headers = [*default_headers, *response.raw_headers, (b"connection", b"close")]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body])
