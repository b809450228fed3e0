"""
What the application has of pages from its start: `/docs`, and the door to the console.

Nothing of the console is imported before its first visit: most processes serve nobody's browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config import Settings
from app.console.assets import asset_path, serve_asset
from app.web.prefix import prefix_of
from app.web.provided import provided
from app.web.routing import Router

PATH = "/console"
router = Router(include_in_schema=False)
_SWAGGER = "vendor/swagger-ui-dist"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Soundpost API</title>
<link rel="icon" href="{icon}" type="image/svg+xml">
<link rel="stylesheet" href="{style}">
</head>
<body>
<main id="docs" data-document="{document}"></main>
<noscript>This page needs JavaScript; <a href="{document}">the document itself</a> does not.</noscript>
<script src="{bundle}"></script>
<script src="{script}"></script>
</body>
</html>
"""


@router.get("/docs")
async def show_docs(settings: Annotated[Settings, provided(Settings)]) -> Response:
    """The OpenAPI document as a page, by files of this service alone."""
    prefix = prefix_of(settings.link_base)
    names = {
        "icon": "icon.svg",
        "style": f"{_SWAGGER}/swagger-ui.css",
        "bundle": f"{_SWAGGER}/swagger-ui-bundle.js",
        "script": "docs.js",
    }
    files = {part: f"{prefix}/docs/{asset_path(name)}" for part, name in names.items()}
    return HTMLResponse(_PAGE.format(document=f"{prefix}/openapi.json", **files), headers={"Cache-Control": "no-cache"})


@router.get("/docs/{digest}/{name:path}")
async def get_file(digest: str, name: str) -> Response:
    """One of the page's files."""
    return serve_asset(digest, name)


class Console:
    """The ASGI application behind `/console`, made at the first visit."""

    def __init__(self, services: Mapping[type, Any]) -> None:
        self._services = services
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            from app.console.application import create_console

            self._app = create_console(self._services)
        await self._app(scope, receive, send)


def console_routes(services: Mapping[type, Any]) -> list[Route]:
    """The routes of the console, for an application whose long-lived objects these are, by their classes."""
    console = Console(services)
    return [Route(path, console) for path in (PATH, f"{PATH}/{{path:path}}")]
