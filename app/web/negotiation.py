"""What callers take for an answer (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.routing import APIRoute

from app.errors import NotAcceptable

_REFUSED = re.compile(r"(?:^|;)\s*q\s*=\s*0(?:\.0{0,3})?\s*(?:;|$)", re.ASCII)


async def check_accept(request: Request) -> None:
    """
    Raise NotAcceptable where the caller takes nothing that this route answers.

    That is told before anything is done, so that nothing is ordered whose answer
    nobody reads.
    """
    accept = ",".join(request.headers.getlist("accept"))
    offered = _offered(request.scope.get("route"))
    if accept.strip() and offered and not any(accepts(accept, media_type) for media_type in offered):
        raise NotAcceptable(detail=f"This answers {' or '.join(offered)}.")


def accepts(accept: str, media_type: str) -> bool:
    """Whether an Accept header admits a media type; the range that names it most exactly counts."""
    ranges = [part.lower().partition(";") for part in accept.split(",")]
    admitted = {name.strip(): not _REFUSED.search(parameters) for name, _, parameters in ranges}
    exactness = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((admitted[name] for name in exactness if name in admitted), False)


def _offered(route: object) -> list[str]:
    if not isinstance(route, APIRoute) or route.response_model is None:
        return []
    return ["application/json", *route.responses.get(200, {}).get("content", {})]
