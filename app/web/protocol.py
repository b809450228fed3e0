"""Connections: deadlines and limits on what a client sends and how it reads, which uvicorn does not have."""

import asyncio
import re
import resource
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

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
)
from app.web.problems import problem

# File descriptors for everything but clients' connections: the database, the upstream, webhooks, files.
RESERVED_FILES = 200
# Beyond any Content-Length of a response.
MAX_LENGTH = sys.maxsize // 2

VERSIONS = frozenset({"1.0", "1.1"})
# RFC 9110 §7.2; it may be empty.
_HOST = re.compile(rb"(\[[0-9A-Fa-fvV:.]+\]|[\w.~!$&'()*+,;=%-]*)(:[0-9]*)?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(/[^?]*)?(\?.*)?", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)


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
    # Requests that wait behind the one being answered.
    max_pipelined = 16
    max_connections = _connections_allowed()

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _receiving_body = False
    _unparsed_bytes = 0
    _refusal: type[AppError] = UnreadableRequest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
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
        self._unparsed_bytes += len(data)
        super().data_received(data if self._receiving_body else _without_upgrade(data))
        if self._unparsed_bytes > self.max_header_bytes:
            self._refuse(HeadersTooLarge())
        elif self._deadline is None and self._has_no_timeout():
            self._set_deadline(self.header_timeout)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.max_pipelined:
            raise UnreadableRequest
        super().on_message_begin()
        if self._deadline is None:
            self._set_deadline(self.header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Uvicorn would add trailers to the headers, which are checked already.
        if not self._receiving_body:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.max_header_bytes:
            self._refusal = HeadersTooLarge
            raise HeadersTooLarge
        version = self.parser.get_http_version()
        _check_head(version, self.headers)
        self.url = _origin_form(self.parser.get_method(), self.url)
        super().on_headers_complete()
        if version == "1.0":
            # The task that calls it has not begun.
            self.cycle.send = partial(_send_until_close, self.cycle, self.cycle.send)  # type: ignore[method-assign, arg-type]
        self._receiving_body = True
        self._set_deadline(self.body_timeout)

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving_body = False
        self._unparsed_bytes = 0
        self._clear_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._set_write_deadline(self.write_timeout)
        elif self._receiving_body and self.cycle.response_complete:
            # The rest of the body is read and dropped: closing now would reset the connection before the client reads.
            self._set_deadline(self.linger_timeout)

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
        if self._receiving_body and not self.pipeline:
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
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _refuse(self, error: AppError) -> None:
        """Close the connection, with this error as the response if the client would take it for its own."""
        if self.transport.is_closing():
            return
        if self._may_respond():
            self.transport.write(_message(problem(error), self.server_state.default_headers))
        self.transport.close()
        self._clear_deadline()
        self._set_write_deadline(self.write_timeout)

    def _may_respond(self) -> bool:
        if self._receiving_body:
            return not self.cycle.response_started and not self.pipeline
        return self.cycle is None or self.cycle.response_complete


def _check_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise UnreadableRequest for a version, a Host or a Transfer-Encoding against the RFC. Names are in lower case."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    has_host = len(hosts) == 1 or (version == "1.0" and not hosts)
    is_framed = not codings or (codings == [b"chunked"] and version == "1.1")
    if version not in VERSIONS or not has_host or not is_framed or not all(map(_HOST.fullmatch, hosts)):
        raise UnreadableRequest


def _origin_form(method: bytes, target: bytes) -> bytes:
    """
    Return the path and query of a request target (RFC 9112 §3.2).

    Every server must accept the absolute form, whose authority counts before that of
    Host; we serve all names alike. Raises UnreadableRequest for what is no target.
    """
    if b"#" in target or method == b"CONNECT":
        raise UnreadableRequest
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise UnreadableRequest
    return (absolute[1] or b"/") + (absolute[2] or b"")


async def _send_until_close(cycle: RequestResponseCycle, send: Send, message: Message) -> None:
    """Send to a client of HTTP/1.0, which knows no chunks: without a length the end of the connection ends the body."""
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
            cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
    elif cycle.expected_content_length > MAX_LENGTH and not message.get("more_body", False):
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)


def _without_upgrade(data: bytes) -> bytes:
    # Java's HttpClient sends an h2c upgrade with a POST and its body. A server may ignore the upgrade (RFC 9110 §7.8);
    # the parser would take the body for the other protocol and drop it.
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nX-Declined-Upgrade:", head) + end + rest


def _message(response: Response, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    headers = [*default_headers, *response.raw_headers, (b"connection", b"close")]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body])
