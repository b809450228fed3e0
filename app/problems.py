"""The page behind each problem type, and every operation's problems in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from app.errors import (
    AppError,
    ContentTooLarge,
    DatabaseUnavailable,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    UnreadableBody,
    UnsupportedMediaType,
    cases,
)

router = APIRouter(tags=["problems"])
MEDIA_TYPE = "application/problem+json"
WITH_BODY: tuple[type[AppError], ...] = (UnreadableBody, ContentTooLarge, UnsupportedMediaType, InvalidRequest)


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


def says(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """What a route adds to its `responses` for problems that only it has."""
    return {error.status: {"description": error.title} for error in errors}


@router.get("/problems/{slug}", response_class=HTMLResponse, include_in_schema=False)
async def show_problem(slug: str) -> HTMLResponse:
    """What a problem's `type` means, for the person who follows it."""
    for case in cases():
        if case.slug == slug:
            text = " ".join((case.__doc__ or "").split())
            head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(case.title)}</title>"
            return HTMLResponse(f"{head}<h1>{escape(case.title)}</h1><p>HTTP {case.status}. {escape(text)}</p></html>")
    raise NotFound


def document_problems(app: FastAPI) -> None:
    """Let the OpenAPI document say of every operation which problems it may answer with, all in one shape."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            schemas = document["components"]["schemas"]
            schemas.update(_schemas())
            for framework_shape in ("HTTPValidationError", "ValidationError"):
                schemas.pop(framework_shape, None)
            for path, operation in _operations(document):
                _add_problems(path, operation)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _add_problems(path: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    for error in _likely(path, operation):
        responses.setdefault(str(error.status), {"description": error.title})
    for status, response in responses.items():
        if status >= "400" and "content" not in response:
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _likely(path: str, operation: Mapping[str, Any]) -> Iterator[type[AppError]]:
    if operation.get("security"):
        yield NotAuthenticated
    if "{" in path:
        yield NotFound
    if "requestBody" in operation:
        yield from WITH_BODY
    if operation.get("parameters"):
        yield InvalidRequest
    if path.startswith(("/v1/", "/callbacks/", "/api/")):
        yield DatabaseUnavailable


def _schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}
