"""Pages: cut to their limit, linked to the next one, and continued by our own cursors alone."""

import base64
import json

import pytest
from fastapi import Request, Response
from hypothesis import given
from hypothesis import strategies as some

from app.errors import InvalidRequest
from app.web.pagination import decode_cursor, encode_cursor, next_page

LIST = "/v1/tasks"
ascii_texts = some.text(some.characters(min_codepoint=1, max_codepoint=127), max_size=40)


@given(some.lists(ascii_texts, min_size=1, max_size=3))
def test_position_comes_back_from_its_cursor(position: list[str]) -> None:
    assert decode_cursor(_request(b""), encode_cursor("/v1/tasks", *position), len(position)) == tuple(position)


def test_no_cursor_is_the_beginning() -> None:
    assert decode_cursor(_request(b""), None, 2) is None


@pytest.mark.parametrize("path", ["/v1/deliveries", "/v1/tasks/0198/events", "/v1/tasks/", ""])
def test_cursor_of_another_list_is_refused(path: str) -> None:
    _refused_unless_ours(encode_cursor(path, "a", "b"))


@given(some.text(max_size=60))
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    _refused_unless_ours(text)


@pytest.mark.parametrize(
    "position",
    [None, "x", 7, {}, {"0": "a"}, [], [LIST], [LIST, "a"], [LIST, "a", "b", "c"], [LIST, "a", 1], [LIST, "a\0", "b"]],
)
def test_cursor_of_another_shape_is_refused(position: object) -> None:
    _refused_unless_ours(base64.urlsafe_b64encode(json.dumps(position).encode()).decode())


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 400,
        *(b'["/v1/tasks", ' + end for end in (b'"a", "b"', b'"\\ud800", "b"]', b'"\xc3\xa9", "b"]')),
    ],
)
def test_cursor_that_holds_no_text_of_ours_is_refused(content: bytes) -> None:
    _refused_unless_ours(base64.urlsafe_b64encode(content).decode())


@pytest.mark.parametrize(("found", "page", "last"), [("", "", None), ("ab", "ab", None), ("abc", "ab", "b")])
def test_page_holds_its_limit_and_its_cursor_names_the_last_item(found: str, page: str, last: str | None) -> None:
    response = Response()

    items, cursor = next_page(_request(b"limit=2"), response, found, 2, lambda item: (item,))

    assert items == page
    assert (cursor and decode_cursor(_request(b""), cursor, 1)) == (None if last is None else (last,))
    assert ("link" in response.headers) is (last is not None)


def test_link_keeps_the_query_and_replaces_the_cursor() -> None:
    response = Response()

    _, cursor = next_page(_request(b"status=failed&cursor=old&limit=1"), response, "ab", 1, lambda item: (item,))

    assert response.headers["link"] == f'</v1/tasks?status=failed&limit=1&cursor={cursor}>; rel="next"'


def _request(query: bytes) -> Request:
    headers = [(b"host", b"sounds.example")]
    scope = {"type": "http", "method": "GET", "path": "/v1/tasks", "query_string": query, "headers": headers}
    return Request({**scope, "scheme": "http", "server": ("sounds.example", 80)})


def _refused_unless_ours(cursor: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_cursor(_request(b""), cursor, 2)
    assert [error["pointer"] for error in refused.value.errors] == ["#/query/cursor"]
