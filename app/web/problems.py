"""The page behind each problem type, and its shape in the OpenAPI document."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from app.errors import AppError, NotFound, cases

router = APIRouter(tags=["problems"])
MEDIA_TYPE = "application/problem+json"
# Where a route's `responses` keep the slugs until the document is completed.
CASES = "x-cases"


class FieldProblem(BaseModel):
    """One thing wrong with a request: where, as a JSON pointer, and what."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """What went wrong, after RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldProblem] | None = None


def problem_responses(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """What a route adds to its `responses` for problems that only it has."""
    found: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        found.setdefault(error.status, {"description": error.title, CASES: []})[CASES].append(error.slug)
    return found


@router.get("/problems/{slug}", response_class=HTMLResponse, include_in_schema=False)
async def show_problem(slug: str) -> HTMLResponse:
    """What a problem's `type` means, for the person who follows it."""
    for case in cases():
        if case.slug == slug:
            head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(case.title)}</title>"
            return HTMLResponse(
                f"{head}<h1>{escape(case.title)}</h1><p>HTTP {case.status}. {escape(case.advice)}</p></html>"
            )
    raise NotFound
