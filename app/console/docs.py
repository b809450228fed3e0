"""`/docs`: the OpenAPI document as a page, by files of this service alone."""

from __future__ import annotations

from typing import Annotated

from fastapi.responses import HTMLResponse, Response

from app.config import Settings
from app.console.assets import asset_path, serve_asset
from app.web.prefix import prefix_of
from app.web.provided import provided
from app.web.routing import Router

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
    """The page, whose script reads the document of this service."""
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
    """One of its files."""
    return serve_asset(digest, name)
