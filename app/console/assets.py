"""The files that pages need, served under URLs that change with their content, so that browsers keep them for good."""

from __future__ import annotations

import mimetypes
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi.responses import FileResponse, Response

from app.errors import NotFound

STATIC = Path(__file__).with_name("static")
DIGEST_LENGTH = 12
KEPT_FOR_GOOD = "public, max-age=31536000, immutable"


def asset_path(name: str) -> str:
    """Where the file of this name is served, below the path of the assets."""
    return f"{_digest(name)}/{name}"


def serve_asset(digest: str, name: str) -> Response:
    """The response with this file. Raises NotFound."""
    if name not in _files():
        raise NotFound
    # While a release is rolled out, a page of one replica may ask another one for its files.
    is_this_one = digest == _digest(name)
    media_type = mimetypes.guess_type(name)[0] or "text/plain"
    headers = {"Cache-Control": KEPT_FOR_GOOD if is_this_one else "no-cache"}
    return FileResponse(_files()[name], headers=headers, media_type=media_type)


@cache
def _files() -> dict[str, Path]:
    """Every file by its name: what is not there cannot be asked for, however its path is written."""
    return {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}


@cache
def _digest(name: str) -> str:
    return sha256(_files()[name].read_bytes()).hexdigest()[:DIGEST_LENGTH]
