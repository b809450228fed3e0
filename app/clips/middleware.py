"""Pages of any origin may read what a signed link leads to: who has the link needs no other permission."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.negotiation import request_id_of

FILES = re.compile(r"/v1/tasks/[^/]+/clips/[^/]+/[^/]+")
SIGNED = re.compile(rb"(^|&)signature=")
METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Without Access-Control-Allow-Credentials, so that a browser sends no cookies along.
ANSWER = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag",
}
PREFLIGHT = {
    **ANSWER,
    "Access-Control-Allow-Methods": "GET, HEAD",
    # The wildcard does not cover Authorization, which players and proxies of a page may add.
    "Access-Control-Allow-Headers": "*, Authorization, Range, If-Range, If-None-Match",
    "Access-Control-Max-Age": "86400",
}


class SignedLinksForAnyOrigin:
    """Pure ASGI middleware that answers preflights of signed links and marks every response to one (CORS)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the inner application's awaitable: a frame of our own would cost memory for each waiting caller."""
        if scope["type"] != "http" or scope["method"] not in METHODS or not _is_signed_link(scope):
            return self._app(scope, receive, send)
        if scope["method"] == "OPTIONS":
            marked = {**PREFLIGHT, "X-Request-Id": request_id_of(scope["headers"])}
            return Response(status_code=204, headers=marked)(scope, receive, send)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ANSWER)
            await send(message)

        return self._app(scope, receive, send_marked)


def _is_signed_link(scope: Scope) -> bool:
    return bool(FILES.fullmatch(scope["path"]) and SIGNED.search(scope["query_string"]))
