"""The path under which a proxy serves us: what the service says about its own paths begins with it."""

from __future__ import annotations

from collections.abc import Awaitable
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.problems import MEDIA_TYPE

_HEADERS = ("location", "link")
_TYPE = b'{"type":"/problems/'


def prefix_of(base_url: str) -> str:
    """The path of the base URL, without a slash at its end; empty for one without a path."""
    return quote(urlsplit(base_url).path, safe="/%:@!$&()*+,;=-._~").rstrip("/")


class PrefixMiddleware:
    """
    Pure ASGI middleware that puts a prefix before our paths in `Location`, `Link` and a problem's `type`.

    The proxy takes the prefix away from the requests that it passes on.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the inner application's awaitable: a frame of our own would cost memory for each waiting caller."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        return self._app(scope, receive, _PrefixedSender(self._prefix, send).send)


class _PrefixedSender:
    def __init__(self, prefix: str, send: Send) -> None:
        self._prefix, self._send, self._is_problem = prefix, send, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in _HEADERS:
                value = headers.get(name, "")
                if value.startswith(("/", "</")):
                    headers[name] = value.replace("/", f"{self._prefix}/", 1)
            self._is_problem = headers.get("content-type") == MEDIA_TYPE
            if self._is_problem:
                headers["content-length"] = str(int(headers["content-length"]) + len(self._prefix))
        elif self._is_problem and message.get("body", b"").startswith(_TYPE):
            message["body"] = message["body"].replace(_TYPE, b'{"type":"%s/problems/' % self._prefix.encode(), 1)
        await self._send(message)
