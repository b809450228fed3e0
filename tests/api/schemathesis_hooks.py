"""What the OpenAPI document cannot say to those who make requests from it."""

from typing import Any

from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, HookContext, hook
from schemathesis.openapi import format as register_format

# Of the addresses that are URIs only public ones are accepted.
register_format("uri", st.sampled_from(["https://example.com/hooks", "http://hooks.example:8080/a?b=%20"]))


@hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """A cursor that is made up is refused, and no schema can tell it from ours; those that we gave come by links."""
    is_meant_to_pass = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    return not (is_meant_to_pass and "cursor" in (case.query or {}))
