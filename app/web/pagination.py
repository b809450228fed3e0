"""Lists in pages: opaque keyset cursors, stable under inserts, and RFC 8288 links to the next page."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated

from fastapi import Query, Request, Response
from pydantic import StringConstraints
from pydantic.json_schema import SkipJsonSchema

from app.errors import InvalidRequest

Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most.")]
Cursor = Annotated[
    Annotated[str, StringConstraints(max_length=500)] | SkipJsonSchema[None],
    Query(description="`next_cursor` of the page before."),
]


def encode_cursor(*position: str) -> str:
    """Name a position; what it is made of is nobody's business."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, parts: int) -> tuple[str, ...] | None:
    """Read a cursor that we made of so many parts. Raises InvalidRequest for any other text."""
    if cursor is None:
        return None
    try:
        position = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise bad_cursor() from None
    if not isinstance(position, list) or len(position) != parts or not all(isinstance(part, str) for part in position):
        raise bad_cursor()
    if any("\0" in part or not part.isascii() for part in position):
        raise bad_cursor()
    return tuple(position)


def bad_cursor() -> InvalidRequest:
    """The error of a cursor that we did not make."""
    return InvalidRequest(errors=[{"pointer": "#/query/cursor", "detail": "is not a cursor of this list"}])


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Point to the next page, as RFC 8288 has it, when there is one."""
    if cursor is not None:
        url = request.url.include_query_params(cursor=cursor)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
