"""The headers by which client and server negotiate, each read in one place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from uuid import uuid4

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.errors import FieldError, InvalidRequest, NotAcceptable
from app.web.problems import pointer_to

MAX_WAIT_SECONDS = 60
MAX_REUSE_SECONDS = 30 * 86_400
# Where callers make up names of filters, and what these begin with.
FREE_NAMES: Mapping[str, str] = {"/v1/tasks": "metadata."}

_QUALITY = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|$)", re.ASCII)
_PREFERENCE = re.compile(r'\w+\s*=\s*(?:"0*(\d{1,9})"|0*(\d{1,9}))\s*(?:;.*)?', re.ASCII | re.IGNORECASE)
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_REQUEST_ID = re.compile(rb"[\w.:+/=-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What a request is called in its response and in the log: its `X-Request-Id` if that is plain, else a new id."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid4().hex


async def check_accept(request: Request) -> None:
    """
    Raise NotAcceptable where the client accepts no media type that this route answers.

    A dependency, so that it runs before the route: no task is created whose response
    the client would refuse.
    """
    accept = request.headers.getlist("accept")
    offered = _offered(request.scope.get("route"))
    if "".join(accept).strip() and offered and not any(quality(accept, media_type)[0] for media_type in offered):
        raise NotAcceptable(detail=f"This answers {' or '.join(offered)}.")


async def check_query(request: Request) -> None:
    """Raise InvalidRequest that names each query parameter that is unknown or repeated, instead of ignoring it."""
    route = request.scope.get("route")
    known = frozenset(_query_names(route.dependant)) if isinstance(route, APIRoute) else frozenset[str]()
    free = FREE_NAMES.get(request.url.path)
    errors: list[FieldError] = []
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known and not (free and name.startswith(free)):
            errors.append({"pointer": pointer_to(["query", name]), "detail": "This is not a parameter here"})
        elif count > 1:
            errors.append({"pointer": pointer_to(["query", name]), "detail": "This is given more than once"})
    if errors:
        raise InvalidRequest(errors=errors[:20])


def _query_names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (info.alias or name for name, info in model.model_fields.items())
        else:
            yield field.alias
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def quality(accept: Sequence[str], media_type: str) -> tuple[float, int]:
    """
    The quality, 0 to 1, that Accept fields give a media type, and how exactly they name it (RFC 9110 §12.5.1).

    2 is the type itself, 1 its `type/*`, 0 is `*/*`; the most exact range counts. (0.0, 0) is not acceptable.
    """
    ranges = [part.lower().partition(";") for part in ",".join(accept).split(",")]
    named = {name.strip(): _weight(parameters) for name, _, parameters in ranges}
    for exactness, name in ((2, media_type), (1, f"{media_type.partition('/')[0]}/*"), (0, "*/*")):
        if name in named:
            return (named[name], exactness) if named[name] else (0.0, 0)
    return 0.0, 0


def prefers(accept: Sequence[str], media_type: str, default: str) -> bool:
    """Whether Accept fields put a media type before the default one; of equal ones the default wins."""
    return quality(accept, media_type) > quality(accept, default)


def preferred_wait(prefer: Sequence[str]) -> int | None:
    """
    The seconds of the first `wait` in Prefer fields (RFC 7240 §4.3), at most MAX_WAIT_SECONDS; None without one.

    A preference that cannot be read is ignored, as §2 has it.
    """
    seconds = _preferred_seconds(prefer, "wait")
    return None if seconds is None else min(seconds, MAX_WAIT_SECONDS)


def preferred_reuse(prefer: Sequence[str]) -> int | None:
    """The seconds of the first `reuse` in Prefer fields, from 1 to MAX_REUSE_SECONDS; None without one, or for 0."""
    return min(_preferred_seconds(prefer, "reuse") or 0, MAX_REUSE_SECONDS) or None


def _preferred_seconds(prefer: Sequence[str], wanted: str) -> int | None:
    for preference in ",".join(prefer).split(","):
        name = preference.partition("=")[0].partition(";")[0].strip()
        if name.lower() == wanted:
            found = _PREFERENCE.fullmatch(preference.strip())
            return int(found[1] or found[2]) if found else None
    return None


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match field holds `*` or this entity tag, compared weakly (RFC 9110 §13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def retry_after(headers: Mapping[str, str], now: datetime, ceiling: timedelta = timedelta.max) -> timedelta | None:
    """
    How long a Retry-After field asks to wait (RFC 9110 §10.2.3), from 0 to `ceiling`; None without a readable one.

    Fractions of seconds, which the RFC does not know, are read too.
    """
    value = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), "")
    if _SECONDS.fullmatch(value):
        return min(timedelta(seconds=float(value)), ceiling)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is in UTC, as all dates in HTTP are.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta()), ceiling)


def _weight(parameters: str) -> float:
    found = _QUALITY.search(parameters)
    return float(found[1]) if found else 1.0


def _offered(route: object) -> list[str]:
    if not isinstance(route, APIRoute) or route.response_model is None:
        return []
    return ["application/json", *route.responses.get(200, {}).get("content", {})]
