"""The OpenAPI document: what the framework does not know about errors, headers and models is added here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
    NotPermitted,
    RequestTimeout,
    ShuttingDown,
    StatementTimedOut,
    TooManyConnections,
    UnknownTransferCoding,
    UnreadableBody,
    UnreadableRequest,
    UnsupportedMediaType,
    UriTooLong,
    cases,
)
from app.web.fields import EXAMPLE_TASK_ID
from app.web.problems import CASES, MEDIA_TYPE, Problem

DESCRIPTION = """
Request and response bodies are JSON with names in snake_case; unknown request fields are refused. Times are RFC 3339
in UTC. Errors are `application/problem+json` (RFC 9457): the `type` of each is the URL of a page that explains it. Each
response has an `X-Request-Id`, the one of its request if that has one, under which the service's log knows the request.
""".strip()

TAGS: Mapping[str, str] = {
    "tasks": "Requests for sounds: create, read, list, cancel and delete them, and follow what happens to them.",
    "clips": "The audio of a task, its cover image and its lyrics, as copies that do not expire with the upstream's.",
    "webhooks": "Webhook endpoints and their deliveries, and the webhooks that they receive.",
    "account": "What a key may spend and has used, and the credits that the upstream has left.",
    "admin": "What only keys with the scope `admin` may ask for: all keys, their budgets and the audit log.",
    "callbacks": "Where the upstream sends its callbacks; each URL contains a secret that only the upstream has.",
    "drop-in": "The vendor's own API over the same tasks: its clients change only the base URL and the key.",
    "health": "Liveness and readiness for load balancers and monitoring.",
}

# Errors that any request may get before it reaches a route.
ANYWHERE: Sequence[type[AppError]] = (
    UnreadableRequest,
    RequestTimeout,
    ContentTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    HeadersTooLarge,
    InternalError,
    UnknownTransferCoding,
    ShuttingDown,
    TooManyConnections,
)

# Each response header with its description and an example; an integer makes its schema one.
HEADERS: Mapping[str, tuple[str, str | int]] = {
    "Accept": ("The media type that request bodies must have.", "application/json"),
    "Accept-Encoding": ("The content coding that request bodies must have.", "identity"),
    "Accept-Ranges": ("The unit in which `Range` can ask for a part of the file.", "bytes"),
    "Cache-Control": ("Whether, where and for how many seconds the response may be cached.", "private, no-cache"),
    "Content-Disposition": (
        "A file name to save the response under, from the clip's title.",
        'inline; filename="a.mp3"',
    ),
    "Content-Range": ("The bytes of the part, counted from 0, and the size of the whole file.", "bytes 0-1023/181248"),
    "ETag": ("Identifies this version of the resource; send it back in `If-None-Match`.", 'W/"5"'),
    "Idempotency-Replayed": (
        "`true` if an earlier request with the same key or id made the task; else absent.",
        "true",
    ),
    "Link": (
        'The next page as `rel="next"` (RFC 8288); absent on the last page.',
        '</v1/tasks?cursor=WyJhI>; rel="next"',
    ),
    "Location": ("The URL of the resource.", f"/v1/tasks/{EXAMPLE_TASK_ID}"),
    "Preference-Applied": (
        "The preferences that were applied (RFC 7240): `wait` with its seconds, and `reuse` for a task that was there;"
        " absent without any.",
        "wait=30",
    ),
    "RateLimit": (
        "The requests left in this window, `r`, and the seconds until there are more, `t`; absent without a limit.",
        '"default";r=59;t=60',
    ),
    "RateLimit-Policy": (
        "The requests allowed, `q`, in any window of `w` seconds; absent without a limit.",
        '"default";q=60;w=60',
    ),
    "Retry-After": ("How many seconds to wait before the next request.", 5),
    "WWW-Authenticate": ("The authentication scheme to use.", "Bearer"),
}


def response_headers(*names: str) -> dict[str, Any]:
    """The `headers` of a response in OpenAPI, as references to their descriptions in HEADERS."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def header_parameter(name: str, description: str, example: str) -> dict[str, Any]:
    """An optional header parameter in OpenAPI, for a route that reads it from the request itself."""
    schema = {"type": "string", "examples": [example]}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def complete_document(app: FastAPI, models: Sequence[str]) -> None:
    """Add to the OpenAPI document the errors of every operation, and the `models` that a task may name."""
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
    components["headers"] = {name: _header(*texts) for name, texts in HEADERS.items()}
    _name_models(components["schemas"]["TaskCreate"], models)
    for request in _request_schemas(document):
        _describe_defaults(components["schemas"][request])
    for operation in _received(document):
        if CASES not in operation["responses"].get("422", {CASES: ()}):
            # The framework's own shape, which is never sent.
            del operation["responses"]["422"]
    for path, operation in _operations(document["paths"]):
        _add_problems(components.setdefault("responses", {}), path, operation)
        _describe_responses(components["schemas"], operation)
        _describe_scopes(operation)


def _operations(paths: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in paths.items():
        for operation in methods.values():
            yield path, operation


def _received(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation: those of this service, and those that it calls at receivers of webhooks."""
    for _, operation in _operations(document["paths"] | document.get("webhooks", {})):
        yield operation
        for paths in operation.get("callbacks", {}).values():
            yield from (callback for _, callback in _operations(paths))


def _name_models(request: dict[str, Any], models: Sequence[str]) -> None:
    described = f"The upstream's model to use; null means {models[0]}."
    request["properties"]["model"] = {
        "enum": [*models, None],
        "default": None,
        "description": described,
        "examples": [models[0]],
    }


def _request_schemas(document: Mapping[str, Any]) -> set[str]:
    """The names of the schemas that callers send."""
    bodies = (operation.get("requestBody", {}) for _, operation in _operations(document["paths"]))
    schemas = (content["schema"] for body in bodies for content in body.get("content", {}).values())
    return {schema["$ref"].rpartition("/")[2] for schema in schemas if "$ref" in schema}


def _describe_defaults(request: dict[str, Any]) -> None:
    """Tell each default in words: some client generators require every field whose schema has one."""
    for field in request.get("properties", {}).values():
        default = field.pop("default", None)
        if default is not None:
            field["description"] += f" `{json.dumps(default)}` unless given."


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
        yield NotPermitted
    if _answers_json(operation):
        yield NotAcceptable
    if "{" in path:
        yield NotFound
    if "requestBody" in operation and not path.startswith(CALLBACKS_PATH):
        yield UnreadableBody
    yield InvalidRequest
    if path.startswith(("/v1/", CALLBACKS_PATH)):
        yield DatabaseUnavailable
        yield StatementTimedOut


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
        "headers": response_headers(
            *dict.fromkeys(name for case in found for name in (*case.headers, *case.dynamic_headers))
        ),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _describe_responses(schemas: Mapping[str, Any], operation: Mapping[str, Any]) -> None:
    """Describe each success by its schema where the route has no description of its own."""
    for response in operation["responses"].values():
        reference = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
        if response.get("description") == "Successful Response" and reference:
            response["description"] = schemas[reference.rpartition("/")[2]]["description"]


def _describe_scopes(operation: dict[str, Any]) -> None:
    """Tell in words which scope an operation needs: few readers of the document look into its `security`."""
    for requirement in operation.get("security", ()):
        for scope in dict.fromkeys(scope for scopes in requirement.values() for scope in scopes):
            operation["description"] += f"\n\nNeeds a key with the scope `{scope}`."


def _header(description: str, example: str | int) -> dict[str, Any]:
    kind = "integer" if isinstance(example, int) else "string"
    return {"description": description, "schema": {"type": kind, "examples": [example]}}


def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}
