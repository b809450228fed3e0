"""RFC 9457 problem details: an error as a response, the page behind each `type`, and the shape in OpenAPI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.errors import AppError, FieldError, NotFound, cases
from app.web.routing import Router

router = Router(tags=["problems"])
MEDIA_TYPE = "application/problem+json"
MAX_PROBLEM_BYTES, MAX_TEXT_BYTES, MAX_POINTER_LENGTH = 2000, 240, 120
# The key in a route's `responses` that holds the slugs until the OpenAPI document is completed.
CASES = "x-cases"


class FieldProblem(BaseModel):
    """One error in a request: where it is, and what is wrong."""

    pointer: str = Field(
        description="Where the error is: a JSON pointer as a URI fragment (RFC 6901 §6), of at most 120 characters,"
        " into the body, or below `#/query`, `#/path` or `#/header`.",
        examples=["#/sound_tempo"],
    )
    detail: str = Field(description="What is wrong there.", examples=["Input should be less than or equal to 300"])


class Problem(BaseModel):
    """Problem details (RFC 9457 §3) of a request that failed."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="The kind of problem: the path of a page that explains it.", examples=["/problems/invalid-request"]
    )
    title: str = Field(
        description="What this kind of problem is, in a sentence that never varies.",
        examples=["The request is well-formed but cannot be accepted."],
    )
    status: int = Field(
        description="The HTTP status code of the response, 400 to 599.",
        examples=[422],
        json_schema_extra={"minimum": 400, "maximum": 599},
    )
    detail: str | None = Field(
        default=None,
        description="What happened in this case, or what to do about it.",
        examples=["`errors` lists each field that must change, and why."],
    )
    errors: list[FieldProblem] | None = Field(
        default=None,
        description="Every error in the request, as far as a response of at most 2000 bytes has room for them; absent"
        " where the problem is not about single fields.",
    )
    upstream_code: int | None = Field(
        default=None,
        description="The upstream's own code, in problems with the upstream; null where it sent none.",
        examples=[455],
    )
    upstream_message: str | None = Field(
        default=None,
        description="The upstream's own message, in problems with the upstream; null where it sent none.",
        examples=["System maintenance"],
    )


def problem(error: AppError, prefix: str = "") -> Response:
    """Return an error as `application/problem+json` (RFC 9457), of at most MAX_PROBLEM_BYTES bytes."""
    body: dict[str, Any] = {"type": f"{prefix}/problems/{error.slug}", "title": error.title, "status": error.status}
    body["detail"] = _clipped(error.detail)
    body |= {name: _clipped(value) if isinstance(value, str) else value for name, value in error.members.items()}
    content = _encoded(body)
    listed: list[FieldError] = []
    for field in error.errors:
        listed.append({"pointer": field["pointer"], "detail": _clipped(field["detail"])})
        longer = _encoded(body | {"errors": listed})
        if len(longer) > MAX_PROBLEM_BYTES:
            break
        content = longer
    # A 404 is cacheable by default (RFC 9110 §15.5.5), but an absent resource may exist a moment later.
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **error.headers}
    return Response(content, error.status, headers, MEDIA_TYPE)


def pointer_to(tokens: Iterable[str | int]) -> str:
    """
    Return a JSON pointer into a request, as a URI fragment (RFC 6901 §6).

    Names come from the request and may be huge: a pointer longer than
    MAX_POINTER_LENGTH is cut at the last ancestor that fits.
    """
    pointer = "#"
    for token in tokens:
        escaped = str(token).replace("~", "~0").replace("/", "~1")
        longer = f"{pointer}/{quote(escaped, safe='~!$&()*+,;=:@', errors='replace')}"
        if len(longer) > MAX_POINTER_LENGTH:
            break
        pointer = longer
    return pointer


def problem_responses(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for errors that not every route has."""
    found: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        found.setdefault(error.status, {"description": error.title, CASES: []})[CASES].append(error.slug)
    return found


@router.get("/problems/{slug}", response_class=HTMLResponse, include_in_schema=False)
async def show_problem(slug: str) -> HTMLResponse:
    """Explain a problem type to a person who follows its URI (RFC 9457 §3.1.1)."""
    for case in cases():
        if case.slug == slug:
            head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(case.title)}</title>"
            return HTMLResponse(
                f"{head}<h1>{escape(case.title)}</h1><p>HTTP {case.status}. {escape(case.advice)}</p></html>"
            )
    raise NotFound


def _clipped(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT_BYTES])
    return printable.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore")


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
