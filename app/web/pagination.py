"""Lists in pages: opaque keyset cursors, stable under inserts, and RFC 8288 links to the next page."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request, Response
from pydantic import Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from app.errors import InvalidRequest
from app.web.openapi import response_headers

Item = TypeVar("Item")
EXAMPLE_CURSOR = "WyIwMTlhNmMxZTdiN2Y3ZDBlOGM1YTJmNGI2ZDhlMGExYyJd"
Limit = Annotated[int, Query(ge=1, le=200, description="The most items in one page, 1 to 200.", examples=[50])]
Cursor = Annotated[
    Annotated[str, StringConstraints(max_length=500)] | SkipJsonSchema[None],
    Query(description="The `next_cursor` of the page before; leave it out for the first.", examples=[EXAMPLE_CURSOR]),
]
NextCursor = Annotated[
    str | None,
    Field(description="The `cursor` of the next page; null on the last one.", examples=[EXAMPLE_CURSOR]),
]
# The `responses` of a route that answers pages.
PAGE: dict[int | str, dict[str, Any]] = {200: {"headers": response_headers("Link")}}


def encode_cursor(path: str, *position: str) -> str:
    """The opaque cursor of a position in the list at this path."""
    return base64.urlsafe_b64encode(json.dumps((path, *position)).encode()).decode().rstrip("=")


def decode_cursor(request: Request, cursor: str | None, parts: int) -> tuple[str, ...] | None:
    """The position, of this many parts, that a cursor of the requested list names. Raises InvalidRequest for others."""
    if cursor is None:
        return None
    try:
        position = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise bad_cursor() from None
    if not isinstance(position, list) or not all(isinstance(part, str) for part in position):
        raise bad_cursor()
    if len(position) != 1 + parts or position[0] != request.url.path:
        raise bad_cursor()
    if any("\0" in part or not part.isascii() for part in position):
        raise bad_cursor()
    return tuple(position[1:])


def decode_time_cursor(request: Request, cursor: str | None) -> tuple[datetime, str] | None:
    """The time and the id behind which a page begins. Raises InvalidRequest."""
    position = decode_cursor(request, cursor, 2)
    if position is None:
        return None
    try:
        moment = datetime.fromisoformat(position[0])
    except ValueError:
        raise bad_cursor() from None
    if moment.tzinfo is None:
        raise bad_cursor()
    return moment, position[1]


def bad_cursor() -> InvalidRequest:
    """The error for a cursor that this service did not make for this list."""
    return InvalidRequest(errors=[{"pointer": "#/query/cursor", "detail": "is not a cursor of this list"}])


def next_page(
    request: Request, response: Response, found: Sequence[Item], limit: int, position: Callable[[Item], tuple[str, ...]]
) -> tuple[Sequence[Item], str | None]:
    """
    Cut a page of `limit` items off the `limit + 1` that were read; return it with the cursor of the next one.

    `position` names an item's place in the list. Where another page follows, the
    response gets a Link header with `rel="next"` (RFC 8288).
    """
    page = found[:limit]
    if len(found) <= limit:
        return page, None
    return page, link_to_next(request, response, position(page[-1]))


def link_to_next(request: Request, response: Response, position: tuple[str, ...]) -> str:
    """Set the Link header to the page behind this position; return its cursor."""
    cursor = encode_cursor(request.url.path, *position)
    # Without other parameters the URL need not be taken apart and put together.
    query = request.url.include_query_params(cursor=cursor).query if request.url.query else f"cursor={cursor}"
    response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return cursor
