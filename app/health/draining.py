"""What clients are told while a process is about to stop: a kept connection ends with its next response."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CloseWhileDraining:
    """
    Pure ASGI middleware: responses have `Connection: close` from SIGTERM on.

    A load balancer that sends no new connections still has kept ones. At the stop the server closes those
    that are idle, where a request may just be on its way: such a client has left before.
    """

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool]) -> None:
        self._app, self._is_draining = app, is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        is_closing = self._is_draining() and scope["type"] == "http"
        await self._app(scope, receive, partial(_send_and_close, send) if is_closing else send)


async def _send_and_close(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        MutableHeaders(scope=message)["connection"] = "close"
    await send(message)
