"""The OpenAPI document explains itself: every operation, parameter, property and header, in English and by example."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from tests.api.document import document, operations

Schema = dict[str, Any]
UNITS = r"seconds|milliseconds|bytes|BPM|credits|code|[Hh]ow many|from [01]\b"


def test_every_operation_has_a_summary_and_a_description() -> None:
    for name, operation in _all_operations():
        assert re.fullmatch(r"[A-Z][^.]*", operation["summary"]), name
        assert len(operation["summary"].split()) >= 2, name
        assert _is_prose(operation["description"]), name

    summaries = [operation["summary"] for _, _, operation in operations()]
    assert len(set(summaries)) == len(summaries)


def test_every_tag_is_described() -> None:
    described = {tag["name"]: tag["description"] for tag in document()["tags"]}

    assert {tag for _, operation in _all_operations() for tag in operation["tags"]} == set(described)
    assert all(map(_is_prose, described.values()))


def test_every_response_is_described() -> None:
    for name, operation in _all_operations():
        for status, response in operation["responses"].items():
            assert _is_prose(_resolve(response)["description"]), (name, status)


def test_every_response_header_is_described_and_has_an_example() -> None:
    headers = document()["components"]["headers"]

    used = {
        header for _, operation in _all_operations() for answer in operation["responses"].values()
        for header in _resolve(answer).get("headers", {})
    }  # fmt: skip
    assert used == set(headers)
    for name, header in headers.items():
        assert _is_prose(header["description"]), name
        assert _wrong_examples(header["schema"]) == [], name


def test_every_schema_is_described() -> None:
    schemas = document()["components"]["schemas"]

    assert [name for name, schema in schemas.items() if not _is_prose(schema.get("description", ""))] == []


def test_every_property_and_parameter_is_described() -> None:
    described = list(_described())

    assert len(described) > 200
    assert [name for name, description, _ in described if not _is_prose(description)] == []


def test_every_property_and_parameter_has_an_example() -> None:
    missing = []
    for name, _, schema in _described():
        try:
            _example(schema)
        except LookupError:
            missing.append(name)

    assert missing == []


def test_every_example_is_valid() -> None:
    wrong = {name: found for name, _, schema in _described() if (found := _wrong_examples(schema))}

    assert wrong == {}


def test_examples_of_properties_make_a_valid_whole() -> None:
    for name, schema in document()["components"]["schemas"].items():
        if "properties" in schema:
            assert list(_validator(schema).iter_errors(_example(schema))) == [], name


def test_every_number_has_a_unit_or_a_range() -> None:
    numbers = [(name, text, schema) for name, text, schema in _described() if _is_number(schema)]

    bare = [name for name, text, schema in numbers if not (re.search(UNITS, text) or "minimum" in str(schema))]
    assert len(numbers) > 20
    assert bare == []


def test_only_the_prompt_is_required_of_a_task() -> None:
    assert document()["components"]["schemas"]["TaskCreate"]["required"] == ["prompt"]


@pytest.mark.parametrize("operation_id", ["getClipAudio", "getClipImage"])
def test_files_are_binary(operation_id: str) -> None:
    operation = next(operation for _, _, operation in operations() if operation["operationId"] == operation_id)

    for status in ("200", "206"):
        for media_type, body in operation["responses"][status]["content"].items():
            assert body["schema"] == {"type": "string", "format": "binary", "contentMediaType": media_type}


def test_every_list_links_its_next_page() -> None:
    for _, path, operation in operations():
        if any(parameter["name"] == "limit" for parameter in operation.get("parameters", ())):
            assert "Link" in operation["responses"]["200"]["headers"], path


def _all_operations() -> Iterator[tuple[str, Schema]]:
    """The service's operations and those of receivers: callbacks and webhooks."""
    for method, path, operation in operations():
        yield f"{method} {path}", operation
        for name, paths in operation.get("callbacks", {}).items():
            for called in paths.values():
                yield from ((f"callback {name}", received) for received in called.values())
    for name, methods in document()["webhooks"].items():
        yield from ((f"webhook {name}", received) for received in methods.values())


def _described() -> Iterator[tuple[str, str, Schema]]:
    """Every property and every parameter: its name, its description, its schema."""
    for operation_name, operation in _all_operations():
        for parameter in operation.get("parameters", ()):
            yield f"{operation_name} {parameter['name']}", parameter.get("description", ""), parameter["schema"]
    for place, schema in _schemas(document(), "#"):
        for name, member in schema.get("properties", {}).items():
            yield f"{place}/{name}", member.get("description", ""), member


def _schemas(value: Any, place: str) -> Iterator[tuple[str, Schema]]:
    """Every object in the document that may be a schema; examples and defaults are none."""
    if isinstance(value, list):
        for number, member in enumerate(value):
            yield from _schemas(member, f"{place}/{number}")
    if isinstance(value, dict):
        yield place, value
        for name, member in value.items():
            if name not in ("example", "examples", "default", "enum"):
                yield from _schemas(member, f"{place}/{name}")


def _is_prose(text: str) -> bool:
    return len(text.split()) >= 3 and re.fullmatch(r"[A-Z`].*\.", text, re.DOTALL) is not None


def _is_number(schema: Schema) -> bool:
    kinds = {member.get("type") for member in (schema, *schema.get("anyOf", ()))}
    return not kinds.isdisjoint({"integer", "number"})


def _example(schema: Schema) -> Any:
    """The first example of a schema, or else one made of those of its parts. Raises LookupError."""
    if "examples" in schema:
        return schema["examples"][0]
    if "anyOf" in schema:
        return _example(next(member for member in schema["anyOf"] if member.get("type") != "null"))
    if "items" in schema:
        return [_example(schema["items"])]
    if "$ref" in schema:
        return _example(_resolve(schema))
    return {name: _example(member) for name, member in schema["properties"].items()}


def _wrong_examples(schema: Schema) -> list[Any]:
    return [example for example in schema.get("examples", ()) if not _validator(schema).is_valid(example)]


def _validator(schema: Schema) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document()["components"]}, validate_formats=True)


def _resolve(value: Schema) -> Schema:
    found: Any = value
    if "$ref" in value:
        found = document()
        for step in value["$ref"].removeprefix("#/").split("/"):
            found = found[step]
    resolved: Schema = found
    return resolved
