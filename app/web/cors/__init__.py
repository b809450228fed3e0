"""
Cross-origin reads (the CORS protocol of the Fetch standard, §3.2): which pages may read what in a browser.

Who has a signed link to audio or to an image needs no other permission, so pages of any origin
may read those. Everything else is for the pages of the origins in SOUNDPOST_CORS_ORIGINS, to read
and never to change. No response allows credentials, so that browsers send no cookies along.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Collection, Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.negotiation import request_id_of

_SHARED = "/v1/"
_FILE = re.compile(r"/v1/tasks/[^/]+/clips/[^/]+/(audio|image)")
_SIGNED = re.compile(rb"(^|&)signature=")
_READS, _READS_OF_PREFLIGHTS = frozenset({"GET", "HEAD"}), frozenset({b"GET", b"HEAD"})
_ALLOW, _ORIGIN, _METHOD = "Access-Control-Allow-Origin", b"origin", b"access-control-request-method"
_REQUEST_HEADERS = "Accept, Authorization, If-None-Match, If-Range, Last-Event-ID, Prefer, Range, X-Request-Id"
# Besides those that any page may read, such as Content-Type.
_EXPOSED = (
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Link, Location, Preference-Applied,"
    " RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
)
_TO_ANY: Mapping[str, str] = {_ALLOW: "*", "Access-Control-Expose-Headers": _EXPOSED}
_PREFLIGHT: Mapping[str, str] = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": _REQUEST_HEADERS,
    # Two hours, which is what browsers keep at most.
    "Access-Control-Max-Age": "7200",
}
# The wildcard does not cover Authorization, which players and proxies of a page may add.
_PREFLIGHT_TO_ANY = {**_PREFLIGHT, "Access-Control-Allow-Headers": f"*, {_REQUEST_HEADERS}"}


class CrossOriginReads:
    """Pure ASGI middleware that answers preflights and marks the responses that pages of other origins may read."""

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app, self._origins = app, frozenset(origin.encode() for origin in origins)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the inner application's awaitable: a frame of our own would cost memory for each waiting caller."""
        marks = self._marks(scope)
        if not marks:
            return self._app(scope, receive, send)
        if scope["method"] in _READS:
            return self._app(scope, receive, _Marked(send, marks).send)
        if _ALLOW not in marks or _header(scope, _METHOD) not in _READS_OF_PREFLIGHTS:
            # Answered as any other request with this method, which a browser takes for a refusal.
            return self._app(scope, receive, send)
        preflight = _PREFLIGHT_TO_ANY if marks is _TO_ANY else _PREFLIGHT
        headers = {**marks, **preflight, "X-Request-Id": request_id_of(scope["headers"])}
        return Response(status_code=204, headers=headers)(scope, receive, send)

    def _marks(self, scope: Scope) -> Mapping[str, str]:
        """The headers for a read, and for a preflight of one; none for what no page of another origin may read."""
        is_read = scope["type"] == "http" and (scope["method"] in _READS or scope["method"] == "OPTIONS")
        if not is_read or not scope["path"].startswith(_SHARED):
            return {}
        if scope["query_string"] and _SIGNED.search(scope["query_string"]) and _FILE.fullmatch(scope["path"]):
            return _TO_ANY
        if not self._origins:
            return {}
        origin = _header(scope, _ORIGIN)
        # Caches keep the responses to different origins apart, and those to none.
        marks = {"Vary": "Origin"}
        return marks if origin not in self._origins else {**_TO_ANY, **marks, _ALLOW: origin.decode()}


class _Marked:
    __slots__ = ("_marks", "_send")

    def __init__(self, send: Send, marks: Mapping[str, str]) -> None:
        self._send, self._marks = send, marks

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # The list may be the response's own, which other responses share.
            message["headers"] = list(message.get("headers", ()))
            headers = MutableHeaders(scope=message)
            for name, value in self._marks.items():
                if name == "Vary":
                    headers.add_vary_header(value)
                else:
                    headers[name] = value
        await self._send(message)


def _header(scope: Scope, wanted: bytes) -> bytes:
    """The value of a header; empty without it, and where it comes twice: browsers never send that."""
    found = [value for name, value in scope["headers"] if name == wanted]
    return found[0] if len(found) == 1 else b""
