"""Where the console meets the application: nothing of it is imported before the first visit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/console"


class Console:
    """The ASGI application behind `/console`, made at the first visit: most processes serve nobody's browser."""

    def __init__(self, provided: Mapping[type, Any]) -> None:
        self._provided = provided
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            from app.console.application import create_console

            self._app = create_console(self._provided)
        await self._app(scope, receive, send)


def console_routes(provided: Mapping[type, Any]) -> list[Route]:
    """The routes of the console, for an application whose long-lived objects these are, by their classes."""
    console = Console(provided)
    return [Route(path, console) for path in (PATH, f"{PATH}/{{path:path}}")]
