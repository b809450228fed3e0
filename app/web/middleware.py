"""Checks every request before a route sees it, and marks every response."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, unquote_plus, unquote_to_bytes

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import CALLBACKS_PATH
from app.egress import CodingBroken, InflatedTooLarge, codings_of, inflated
from app.errors import (
    AppError,
    ContentTooLarge,
    FieldError,
    InvalidRequest,
    NotFound,
    ShuttingDown,
    UnreadableRequest,
    UnsupportedMediaType,
)
from app.observability.redaction import loggable_path
from app.web.exception_handlers import error_for
from app.web.negotiation import request_id_of
from app.web.problems import pointer_to, problem
from app.web.strict_json import check_json

log = structlog.get_logger()


@dataclass(frozen=True)
class BodyRule:
    """The limit on bodies under one path prefix, and whether they must be JSON."""

    prefix: str
    max_bytes: int
    json: bool


# The first matching prefix counts. Callbacks are stored as received: they may be anything, and are not read before
# their token is checked. The console has forms.
BODY_RULES = (
    BodyRule(CALLBACKS_PATH, max_bytes=1024 * 1024, json=False),
    BodyRule("/console/", max_bytes=64 * 1024, json=False),
    BodyRule("", max_bytes=64 * 1024, json=True),
)
# Is told of each request that has ended, its status, if it was answered, and the seconds that it took.
Observe = Callable[[Scope, int | None, float], None]
# What asks every few seconds.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})
# Of the upstream, which appends to our public URL, and of the vendor's clients, which append to a base URL.
TOLERANT_PATHS = (CALLBACKS_PATH, "/api/v1/")
BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})

# Of HTML pages: in no frame, and with nothing but files of this service; pictures may stand in the page itself.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; media-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_JSON_TYPE = re.compile(r"application/(?:[\w.!#$&^-]+\+)?json", re.ASCII | re.IGNORECASE)
_SLASHES = re.compile("//+")
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class TolerantPaths:
    """
    Pure ASGI middleware that takes doubled and trailing slashes out of paths that others put together.

    A redirect to the right path would lose the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the inner application's awaitable: a frame of our own would cost memory for each waiting caller."""
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"]).rstrip("/")
            if path.startswith(TOLERANT_PATHS) and path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        return self._app(scope, receive, send)


class EdgeMiddleware:
    """
    Pure ASGI middleware, outside of everything that must not see a malformed request.

    FastAPI's own `max_body_size` does not serve here: it applies after routing, and its
    refusal is plain text. `check` sees each request first, and may raise an AppError.
    """

    def __init__(
        self,
        app: ASGIApp,
        rules: Sequence[BodyRule] = BODY_RULES,
        observe: Observe | None = None,
        check: Callable[[Scope], None] | None = None,
    ) -> None:
        self._app, self._rules, self._observe, self._check = app, rules, observe, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        response = _Response(send, request_id)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.monotonic()
        try:
            await self._app(scope, await self._admit(scope, receive), response.send)
        except asyncio.CancelledError:
            # The server ended the grace; it would answer a plain 500.
            await response.fail(scope, receive, ShuttingDown())
            raise
        except Exception as exc:
            await response.fail(scope, receive, error_for(scope, exc))
        finally:
            seconds = time.monotonic() - began
            _log_request(scope, response.status, seconds)
            if self._observe is not None:
                self._observe(scope, response.status, seconds)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Raise the AppError for a request that no route could accept; return the `receive` for the routes."""
        if self._check is not None:
            self._check(scope)
        headers = Headers(scope=scope)
        _check_target(scope)
        rule = next(rule for rule in self._rules if scope["path"].startswith(rule.prefix))
        codings = _codings(headers, rule)
        if not _has_body(headers, rule):
            return receive
        capped = _capped(receive, rule.max_bytes)
        if codings:
            return _inflated(capped, codings, rule.max_bytes)
        if not rule.json or scope["method"] not in BODY_METHODS:
            return capped
        _check_media_type(headers)
        body = await read_body(capped)
        if body:
            check_json(body)
        return replayed(body, capped)


class _Response:
    """The response to one request. An error is sent only while no other response has begun."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if headers.get("content-type", "").startswith("text/html"):
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
                headers["X-Frame-Options"] = "DENY"
            headers.append("X-Request-Id", self._request_id)
        await self._send(message)

    async def fail(self, scope: Scope, receive: Receive, error: AppError) -> None:
        # Otherwise the response stays truncated, and the server closes the connection.
        if self.status is None:
            await problem(error)(scope, receive, self.send)


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    # A line for each request would cost a third of a short one: those that succeed are told at debug level.
    is_quiet = (status is not None and status < 400) or scope["path"] in PROBES
    if is_quiet and logging.getLogger().getEffectiveLevel() > logging.DEBUG:
        return
    write = log.debug if is_quiet else log.info
    path = loggable_path(scope["path"])
    write("request", method=scope["method"], path=path, status=status, duration_ms=round(seconds * 1000))


def _check_target(scope: Scope) -> None:
    if not _is_text(scope.get("raw_path") or scope["path"].encode(errors="surrogatepass")):
        raise NotFound
    errors = [_query_error(pair) for pair in scope["query_string"].split(b"&") if not _is_text(pair)]
    if errors:
        raise InvalidRequest(errors=errors[:20])


def _is_text(escaped: bytes) -> bool:
    try:
        text = unquote_to_bytes(escaped).decode()
    except UnicodeDecodeError:
        return False
    return "\0" not in text and not _BROKEN_ESCAPE.search(escaped)


def _query_error(pair: bytes) -> FieldError:
    name = pair.partition(b"=")[0]
    names = [unquote_plus(name.decode())] if _is_text(name) else []
    return {"pointer": pointer_to(["query", *names]), "detail": "This is not percent-encoded UTF-8 without NUL"}


def _has_body(headers: Headers, rule: BodyRule) -> bool:
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise UnreadableRequest
    if int(length) > rule.max_bytes:
        raise ContentTooLarge
    return int(length) > 0 or "transfer-encoding" in headers


def _codings(headers: Headers, rule: BodyRule) -> Sequence[str]:
    """The content codings to undo. The upstream may have any proxy in front; callers are told to send none."""
    if "content-encoding" not in headers:
        return ()
    if rule.json:
        raise UnsupportedMediaType
    codings = codings_of(",".join(headers.getlist("content-encoding")))
    if codings is None:
        raise UnsupportedMediaType(
            "Code the body with gzip or deflate, or not at all.", headers={"Accept-Encoding": "gzip, deflate, identity"}
        )
    return codings


def _check_media_type(headers: Headers) -> None:
    media_type, *parameters = ",".join(headers.getlist("content-type")).split(";")
    charsets = [value for name, value in map(_parameter, parameters) if name == "charset"]
    if not _JSON_TYPE.fullmatch(media_type.strip()) or not {"utf-8", "utf8"}.issuperset(charsets):
        raise UnsupportedMediaType


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.lower().partition("=")
    return name.strip(), value.strip().strip('"')


def _capped(receive: Receive, max_bytes: int) -> Receive:
    received = 0

    async def receive_capped() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise ContentTooLarge
        return message

    return receive_capped


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request. Raises ClientDisconnect, and what `receive` raises."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then what `receive` gives."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_replayed() -> Message:
        return pending.pop() if pending else await receive()

    return receive_replayed


def _inflated(receive: Receive, codings: Sequence[str], max_bytes: int) -> Receive:
    """The body with its codings undone, read when the route asks for it; a broken one as it came."""
    is_read = False

    async def receive_inflated() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read, body = True, await read_body(receive)
        with suppress(CodingBroken):
            try:
                body = inflated(body, codings, max_bytes)
            except InflatedTooLarge:
                raise ContentTooLarge from None
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_inflated
