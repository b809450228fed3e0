"""Rules of the service that the OpenAPI document cannot express, for requests generated from it."""

from typing import Any
from uuid import uuid4

from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, HookContext, hook
from schemathesis.openapi import format as register_format

PUBLIC_URLS = ("https://example.com/hooks", "http://hooks.example:8080/a?b=%20")

# Of the addresses that are URIs only public ones are accepted.
register_format("uri", st.sampled_from(PUBLIC_URLS))


@hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """
    Of what is made up to be accepted, leave out what only the service can judge.

    No schema tells a cursor that we gave from another text, and those that we gave
    come by links; a URL that was lengthened up to the limit has no host.
    """
    return not _is_meant_to_pass(case) or not ("cursor" in (case.query or {}) or _has_made_up_url(case.body))


@hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """
    Let no request spoil the others.

    Two orders under one key or id are refused unless they are the same, so each gets its own; and a key whose
    budget is used up has its orders refused, or held for ever, so each is given a large one.
    """
    if _is_meant_to_pass(case):
        _give_own_key(case)
        _give_room(case)
    return case


@hook
def before_add_examples(context: HookContext, examples: list[Case[Any]]) -> None:
    """Leave the cursor out of the documented examples, which each list refuses but its own; give each its own key."""
    for case in examples:
        (case.query or {}).pop("cursor", None)
        _give_own_key(case)
        _give_room(case)


def _give_own_key(case: Case[Any]) -> None:
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = str(uuid4())
    if case.method.upper() == "PUT" and "task_id" in (case.path_parameters or {}):
        case.path_parameters["task_id"] = str(uuid4())


def _give_room(case: Case[Any]) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("limit"), int | float):
        case.body["limit"] = 1_000_000


def _is_meant_to_pass(case: Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


def _has_made_up_url(body: object) -> bool:
    urls = [body.get(name) for name in ("url", "webhook_url")] if isinstance(body, dict) else []
    return any(url is not None and url not in PUBLIC_URLS for url in urls)
