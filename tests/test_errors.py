"""What callers are told when something goes wrong, whoever noticed it."""

import json
import re
from typing import Any

import pytest
from starlette.responses import Response

from app import errors
from app.errors import AppError, FieldError, UpstreamUnavailable, problem


def read(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(response.body))
    return body


@pytest.mark.parametrize("case", errors.cases(), ids=lambda case: case.__name__)
def test_every_case_has_its_own_words_and_stands_in_the_drawing(case: type[AppError]) -> None:
    answer = problem(case())

    assert read(answer) == {"type": f"/problems/{case.slug}", "title": case.title, "status": case.status}
    assert answer.status_code == case.status
    assert answer.media_type == "application/problem+json"
    assert re.search(rf"── {case.__name__} +{case.status}\b", errors.__doc__ or "")


def test_no_two_cases_share_a_slug() -> None:
    slugs = [case.slug for case in errors.cases()]

    assert len(slugs) == len(set(slugs))


def test_a_problem_carries_detail_fields_headers_and_members() -> None:
    field: FieldError = {"pointer": "#/prompt", "detail": "Too long"}
    error = UpstreamUnavailable(
        "It said no.", errors=[field], headers={"Retry-After": "30"}, upstream_code=500, upstream_message="busy"
    )

    answer = problem(error)

    assert read(answer) == {
        "type": "/problems/upstream-unavailable",
        "title": "The upstream gave no usable answer.",
        "status": 502,
        "detail": "It said no.",
        "upstream_code": 500,
        "upstream_message": "busy",
        "errors": [field],
    }
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("letter", ["a", "\x00", "\ud800", "\u2028", "語", "😀", '"'])
def test_a_problem_never_exceeds_two_kilobytes(letter: str) -> None:
    field: FieldError = {"pointer": errors.pointer_to(["x" * 80, letter * 9000]), "detail": letter * 9000}

    answer = problem(UpstreamUnavailable(letter * 9000, errors=[field] * 500, upstream_message=letter * 9000))

    assert len(answer.body) <= 2000
    assert read(answer)["errors"][0]["pointer"] == "#/" + "x" * 80


@pytest.mark.parametrize(
    ("tokens", "pointer"),
    [
        ([], "#"),
        (["prompt"], "#/prompt"),
        (["metadata", "a/b~c"], "#/metadata/a~1b~0c"),
        (["words", 3], "#/words/3"),
        (["a b%\x00\n"], "#/a%20b%25%00%0A"),
        (["ключ"], "#/%D0%BA%D0%BB%D1%8E%D1%87"),
        (["metadata", "k" * 1000], "#/metadata"),
    ],
)
def test_a_pointer_is_a_uri_fragment_of_bounded_length(tokens: list[str | int], pointer: str) -> None:
    assert errors.pointer_to(tokens) == pointer
