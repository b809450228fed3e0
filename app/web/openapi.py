"""The OpenAPI document, completed by what the framework cannot know: our problems, headers and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from app.config import CALLBACKS_PATH
from app.errors import (
    AppError,
    ContentTooLarge,
    DatabaseUnavailable,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    NotAcceptable,
    NotAuthenticated,
    NotFound,
    RequestTimeout,
    ShuttingDown,
    TooManyConnections,
    UnreadableBody,
    UnreadableRequest,
    UnsupportedMediaType,
    cases,
)
from app.web.problems import CASES, MEDIA_TYPE, Problem

DESCRIPTION = """
Bodies are JSON in snake_case; unknown fields are refused. Times are RFC 3339 in UTC. Whatever goes wrong is told as
`application/problem+json` (RFC 9457), and each `type` leads to a page about it.
""".strip()

TAGS: Mapping[str, str] = {
    "tasks": "Requests for sounds, and what became of them.",
    "clips": "The audio of a task, its cover and its lyrics: our own copies, which do not expire.",
    "webhooks": "Being told instead of asking.",
    "account": "What is left upstream, and what was used.",
    "callbacks": "Where the upstream calls; each address holds a secret that only the upstream was told.",
    "drop-in": "The vendor's own API over the same tasks: its clients change the base URL and the key.",
    "health": "For load balancers and monitors.",
}

# What any request may meet before a route sees it.
ANYWHERE: Sequence[type[AppError]] = (
    UnreadableRequest,
    RequestTimeout,
    ContentTooLarge,
    UnsupportedMediaType,
    HeadersTooLarge,
    InternalError,
    ShuttingDown,
    TooManyConnections,
)

HEADERS: Mapping[str, str] = {
    "Accept": "The media type that can be read.",
    "Accept-Encoding": "The content coding that can be read.",
    "Accept-Ranges": "That parts can be asked for.",
    "Cache-Control": "Whether the answer may be kept.",
    "Content-Disposition": "A name to keep the file by.",
    "Content-Range": "Which part this is, and of how much.",
    "ETag": "Names this version, for `If-None-Match`.",
    "Idempotency-Replayed": "`true` where an earlier request with this key made the task.",
    "Link": 'The next page, as `rel="next"` (RFC 8288); absent on the last one.',
    "Location": "Where it is.",
    "RateLimit": "What is left of your rate and in how many seconds there is more; absent where there is no limit.",
    "RateLimit-Policy": "How many submits you may make in how many seconds; absent where there is no limit.",
    "Retry-After": "In how many seconds to come again.",
    "WWW-Authenticate": "The scheme to authenticate with.",
}
ORDER_HEADERS = ("Location", "Cache-Control", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy")
FILE_HEADERS = ("ETag", "Cache-Control", "Accept-Ranges", "Content-Disposition")
RESPONSE_HEADERS: Mapping[tuple[str, str], Sequence[str]] = {
    ("createTask", "200"): ORDER_HEADERS,
    ("createTask", "202"): (*ORDER_HEADERS, "Retry-After"),
    ("createTask", "429"): ("RateLimit", "RateLimit-Policy", "Retry-After"),
    ("getClipAudio", "200"): FILE_HEADERS,
    ("getClipAudio", "206"): (*FILE_HEADERS, "Content-Range"),
    ("getClipAudio", "307"): ("Location", "Cache-Control"),
    ("getClipImage", "200"): FILE_HEADERS,
    ("getClipImage", "206"): (*FILE_HEADERS, "Content-Range"),
    ("getTask", "200"): ("ETag", "Cache-Control"),
    ("getTask", "304"): ("ETag", "Cache-Control"),
}


def complete_document(app: FastAPI, models: Sequence[str]) -> None:
    """Let the OpenAPI document say of every operation how it may end; `models` are those that can be ordered here."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(build(), models)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], models: Sequence[str]) -> None:
    document["info"]["description"] = DESCRIPTION
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    components = document["components"]
    for framework_shape in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(framework_shape, None)
    components["schemas"].update(_problem_schemas())
    components["headers"] = {name: _header(text) for name, text in HEADERS.items()}
    _name_models(components["schemas"]["TaskCreate"], models)
    for operation in _received(document):
        if CASES not in operation["responses"].get("422", {CASES: ()}):
            # The framework's own shape, which we never answer.
            del operation["responses"]["422"]
    for path, operation in _operations(document["paths"]):
        _add_problems(components.setdefault("responses", {}), path, operation)
        _add_headers(operation)


def _operations(paths: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in paths.items():
        for operation in methods.values():
            yield path, operation


def _received(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation, ours and those that we expect of receivers."""
    for _, operation in _operations(document["paths"] | document.get("webhooks", {})):
        yield operation
        for paths in operation.get("callbacks", {}).values():
            yield from (callback for _, callback in _operations(paths))


def _name_models(order: dict[str, Any], models: Sequence[str]) -> None:
    described = f"The upstream's model; {models[0]} unless given."
    order["properties"]["model"] = {"enum": [*models, None], "default": None, "description": described}


def _add_problems(shared: dict[str, Any], path: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    own = [_case(slug) for response in responses.values() for slug in response.pop(CASES, ())]
    if path.startswith("/api/"):
        return
    by_status: dict[str, list[type[AppError]]] = {}
    for case in dict.fromkeys((*own, *_likely(path, operation), *ANYWHERE)):
        by_status.setdefault(str(case.status), []).append(case)
    for status, found in sorted(by_status.items()):
        if "content" in responses.get(status, {}):
            continue
        name = "-".join(case.__name__ for case in found)
        shared.setdefault(name, _problem_response(found))
        responses[status] = {"$ref": f"#/components/responses/{name}"}


def _likely(path: str, operation: Mapping[str, Any]) -> Iterator[type[AppError]]:
    if operation.get("security"):
        yield NotAuthenticated
    if _answers_json(operation):
        yield NotAcceptable
    if "{" in path:
        yield NotFound
    if "requestBody" in operation and not path.startswith(CALLBACKS_PATH):
        yield UnreadableBody
    yield InvalidRequest
    if path.startswith(("/v1/", CALLBACKS_PATH)):
        yield DatabaseUnavailable


def _answers_json(operation: Mapping[str, Any]) -> bool:
    found = (response for status, response in operation["responses"].items() if status < "300")
    return bool(operation.get("security")) and any("application/json" in answer.get("content", {}) for answer in found)


def _case(slug: str) -> type[AppError]:
    return next(case for case in cases() if case.slug == slug)


def _problem_response(found: Sequence[type[AppError]]) -> dict[str, Any]:
    examples = {
        case.slug: {
            "summary": case.title,
            "value": {
                "type": f"/problems/{case.slug}",
                "title": case.title,
                "status": case.status,
                "detail": case.advice,
            },
        }
        for case in found
    }
    return {
        "description": " Or: ".join(case.title for case in found),
        "headers": _refer(dict.fromkeys(name for case in found for name in case.headers)),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _add_headers(operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        names = list(RESPONSE_HEADERS.get((operation["operationId"], status), ()))
        if status == "200" and "limit" in {parameter["name"] for parameter in operation.get("parameters", ())}:
            names.append("Link")
        if names and "$ref" not in response:
            response["headers"] = _refer(names)


def _refer(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}


def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}
