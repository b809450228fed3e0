"""Checks of requests before any route: JSON, media types, sizes, encodings."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI, Header, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from starlette.types import Message, Receive, Scope, Send

from app.web import EdgeMiddleware, StrictModel, Text, install_error_handlers

KIB = 1024
JSON = {"content-type": "application/json"}


class Order(StrictModel):
    prompt: Annotated[Text, Field(min_length=1, max_length=500)] = "rain"
    tempo: Annotated[int, Field(ge=1, le=300)] | None = None
    weight: float | None = None
    loop: bool = False
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=16)


def shop() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    install_error_handlers(app)
    app.add_middleware(EdgeMiddleware)

    @app.post("/orders")
    async def create(order: Order, prefer: Annotated[str | None, Header()] = None) -> Order:
        return order

    @app.post("/orders/{order_id}/cancel")
    async def cancel(order_id: str) -> str:
        return order_id

    @app.get("/orders/{order_id}")
    async def read(order_id: str, note: str = "") -> dict[str, str]:
        return {"id": order_id, "note": note}

    @app.post("/callbacks/{order_id}")
    async def hear(order_id: str, request: Request) -> Response:
        if order_id == "unread":
            return Response(status_code=204)
        return Response(await request.body(), media_type="text/plain")

    return app


async def ask(method: str, url: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop()), base_url="http://soundpost.test") as client:
        return await client.request(method, url, **options)


async def order(body: bytes | str, content_type: str = "application/json") -> httpx.Response:
    return await ask("POST", "/orders", content=body, headers={"content-type": content_type})


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.content) <= 2000
    return str(answer.json()["type"]).removeprefix("/problems/")


# The cases of JSONTestSuite that have told readers apart, by its names: y must be read, n must not be, and of its
# implementation-defined ones (i) each is decided here.
READABLE = {
    "y_array_empty": b"[]",
    "y_array_ending_with_newline": b'["a"]\n',
    "y_array_false": b"[false]",
    "y_array_heterogeneous": b'[null, 1, "1", {}]',
    "y_array_with_several_null": b"[1,null,null,null,2]",
    "y_number_0e1": b"[0e1]",
    "y_number_after_space": b"[ 4]",
    "y_number_double_close_to_zero": b"[-0." + b"0" * 70 + b"1]",
    "y_number_minus_zero": b"[-0]",
    "y_number_real_capital_e_neg_exp": b"[1E-2]",
    "y_number_real_exponent": b"[123e45]",
    "y_number_simple_real": b"[123.456789]",
    "y_object_empty_key": b'{"":0}',
    "y_object_escaped_null_in_key": rb'{"foo\u0000bar": 42}',
    "y_object_extreme_numbers": b'{"min": -1.0e+28, "max": 1.0e+28}',
    "y_object_with_newlines": b'{\n"a": "b"\n}',
    "y_string_accepted_surrogate_pair": rb'["\uD801\udc37"]',
    "y_string_allowed_escapes": rb'["\"\\\/\b\f\n\r\t"]',
    "y_string_backslash_and_u_escaped_zero": rb'["\\u0000"]',
    "y_string_escaped_noncharacter": rb'["\uFFFF"]',
    "y_string_nonCharacterInUTF-8_U+10FFFF": b'["\xf4\x8f\xbf\xbf"]',
    "y_string_null_escape": rb'["\u0000"]',
    "y_string_u+2028_line_sep": b'["\xe2\x80\xa8"]',
    "y_string_unescaped_char_delete": b'["\x7f"]',
    "y_string_utf8": '["€𝄞"]'.encode(),
    "y_structure_lonely_false": b"false",
    "y_structure_lonely_null": b"null",
    "y_structure_lonely_string": b'"asd"',
    "y_structure_whitespace_array": b" [] ",
    "i_number_very_big_negative_int": b"[-237462374673276894279832749832423479823246327846]",
    "i_number_real_underflow": b"[123e-10000000]",
    "nesting of exactly 64": b"[" * 64 + b"0" + b"]" * 64,
}
UNREADABLE = {
    "n_array_1_true_without_comma": b"[1 true]",
    "n_array_a_invalid_utf8": b"[a\xe5]",
    "n_array_comma_after_close": b'[""],',
    "n_array_double_comma": b"[1,,2]",
    "n_array_extra_comma": b'["",]',
    "n_array_just_minus": b"[-]",
    "n_array_newlines_unclosed": b'["a",\n4\n,1,',
    "n_array_number_and_several_commas": b"[1,,]",
    "n_array_spaces_vertical_tab_formfeed": b'["\x0ba"\\f]',
    "n_array_unclosed": b'[""',
    "n_incomplete_false": b"[fals]",
    "n_multidigit_number_then_00": b"123\x00",
    "n_number_++": b"[++1234]",
    "n_number_-01": b"[-01]",
    "n_number_.2e-3": b"[.2e-3]",
    "n_number_0.e1": b"[0.e1]",
    "n_number_1_000": b"[1 000.0]",
    "n_number_2.e3": b"[2.e3]",
    "n_number_Inf": b"[Inf]",
    "n_number_NaN": b"[NaN]",
    "n_number_U+FF11_fullwidth_digit_one": b"[\xef\xbc\x91]",
    "n_number_expression": b"[1+2]",
    "n_number_hex_1_digit": b"[0x1]",
    "n_number_infinity": b"[Infinity]",
    "n_number_minus_infinity": b"[-Infinity]",
    "n_number_minus_nan": b"[-NaN]",
    "n_number_real_without_fractional_part": b"[1.]",
    "n_number_starting_with_dot": b"[.123]",
    "n_number_with_leading_zero": b"[012]",
    "n_object_bad_value": b'["x", truth]',
    "n_object_comma_instead_of_colon": b'{"x", null}',
    "n_object_double_colon": b'{"x"::"b"}',
    "n_object_lone_continuation_byte_in_key": b'{"\xb9":"0",}',
    "n_object_missing_value": b'{"a":',
    "n_object_non_string_key": b"{1:1}",
    "n_object_repeated_null_null": b"{null:null,null:null}",
    "n_object_single_quote": b"{'a':0}",
    "n_object_trailing_comma": b'{"id":0,}',
    "n_object_trailing_comment": b'{"a":"b"}/**/',
    "n_object_unquoted_key": b'{a: "b"}',
    "n_object_with_trailing_garbage": b'{"a":"b"}#',
    "n_single_space": b" ",
    "n_string_1_surrogate_then_escape_u": rb'["\uD800\u"]',
    "n_string_accentuated_char_no_quotes": "[é]".encode(),
    "n_string_escape_x": rb'["\x00"]',
    "n_string_escaped_backslash_bad": rb'["\\\"]',
    "n_string_invalid_backslash_esc": rb'["\a"]',
    "n_string_invalid_utf8_after_escape": b'["\\\xe5"]',
    "n_string_single_doublequote": b'"',
    "n_string_unescaped_ctrl_char": b'["a\x00a"]',
    "n_string_unescaped_newline": b'["new\nline"]',
    "n_string_unescaped_tab": b'["\t"]',
    "n_structure_100000_opening_arrays": b"[" * 60_000,
    "n_structure_U+2060_word_joined": b"[\xe2\x81\xa0]",
    "n_structure_UTF8_BOM_no_data": b"\xef\xbb\xbf",
    "n_structure_angle_bracket_null": b"[<null>]",
    "n_structure_ascii-unicode-identifier": b"a\xc3\xa5",
    "n_structure_capitalized_True": b"[True]",
    "n_structure_close_unopened_array": b"1]",
    "n_structure_double_array": b"[][]",
    "n_structure_no_data": b"\n",
    "n_structure_null-byte-outside-string": b"[\x00]",
    "n_structure_open_array_object": b'[{"":' * 12_000,
    "n_structure_open_object_string_with_apostrophes": b"{'a'",
    "n_structure_whitespace_formfeed": b"[\x0c]",
    "i_number_double_huge_neg_exp beyond a double": b"[1e400]",
    "i_number_neg_int_huge_exp": b"[-1e+9999]",
    "i_number_of 5,000 digits": b"[" + b"9" * 5000 + b"]",
    "i_object_key_lone_2nd_surrogate": rb'{"\uDFAA":0}',
    "i_string_1st_surrogate_but_2nd_missing": rb'["\uDADA"]',
    "i_string_UTF-16LE_with_BOM": '["é"]'.encode("utf-16"),
    "i_string_UTF-8_invalid_sequence": b'["\xe6\x97\xa5\xd1\x88\xfa"]',
    "i_string_UTF8_surrogate_U+D800": b'["\xed\xa0\x80"]',
    "i_string_inverted_surrogates_U+1D11E": rb'["\uDd1e\uD834"]',
    "i_string_overlong_sequence_2_bytes": b'["\xc0\xaf"]',
    "i_string_utf16BE_no_BOM": '["é"]'.encode("utf-16-be"),
    "i_structure_500_nested_arrays": b"[" * 500 + b"]" * 500,
    "i_structure_UTF-8_BOM_empty_object": b"\xef\xbb\xbf{}",
    "nesting of 65": b"[" * 65 + b"]" * 65,
    "nesting of 65 objects": b'{"a":' * 65 + b"0" + b"}" * 65,
}


@pytest.mark.parametrize("body", READABLE.values(), ids=list(READABLE))
async def test_json_that_can_be_read_is_validated(body: bytes) -> None:
    answer = await order(body)

    assert answer.status_code == 422
    assert slug(answer) == "invalid-request"


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=list(UNREADABLE))
async def test_json_that_cannot_be_read_is_a_400(body: bytes) -> None:
    answer = await order(body)

    assert answer.status_code == 400
    assert slug(answer) == "unreadable-body"


async def test_a_good_body_reaches_the_route_as_it_was_sent() -> None:
    wanted = {"prompt": "dripping 💧", "tempo": 90, "weight": 1.5, "loop": True, "metadata": {"é": "\u2028"}}

    answer = await order(json.dumps(wanted))

    assert answer.status_code == 200
    assert answer.json() == wanted
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (rb'{"prompt": "\u0000"}', "#/prompt"),
        (rb'{"metadata": {"a\u0000": "b"}}', "#/metadata/a%00"),
        (rb'{"metadata": {"a": "b\u0000"}}', "#/metadata/a"),
        (b'{"tempo": 1' + b"0" * 400 + b"}", "#/tempo"),
        (b'{"tempo": 9223372036854775808}', "#/tempo"),
        (b'{"tempo": true}', "#/tempo"),
        (b'{"tempo": "90"}', "#/tempo"),
        (b'{"tempo": 90.0}', "#/tempo"),
        (b'{"weight": 1' + b"0" * 400 + b"}", "#/weight"),
        (b'{"loop": 1}', "#/loop"),
        (b'{"volume": 11}', "#/volume"),
        (b'{"prompt": "a", "prompt": "b"}', "#/prompt"),
        (b'{"metadata": {"k": "1", "k": "1"}}', "#/metadata/k"),
        (b'{"x": [{}, {"a": 1, "b": 2, "a": 3}]}', "#/x/1/a"),
    ],
)
async def test_a_field_that_cannot_be_accepted_is_a_422_that_names_it(body: bytes, pointer: str) -> None:
    answer = await order(body)

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;Charset="UTF-8"',
        "application/vnd.api+json",
        "application/json; version=2",
    ],
)
async def test_json_goes_by_several_names(content_type: str) -> None:
    assert (await order(b"{}", content_type)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json, application/json",
        "application/jsonp",
        "application/",
        "\xff\xfe",
        "application/json; charset*=utf-7''x; charset=utf-7",
    ],
)
async def test_another_content_type_is_a_415(content_type: str) -> None:
    answer = await ask("POST", "/orders", content=b"{}", headers=[(b"content-type", content_type.encode("latin-1"))])

    assert answer.status_code == 415
    assert slug(answer) == "unsupported-media-type"
    assert answer.headers["accept-encoding"] == "identity"


async def test_a_body_without_content_type_is_a_415() -> None:
    assert (await ask("POST", "/orders", content=b"{}")).status_code == 415


@pytest.mark.parametrize("url", ["/orders", "/nowhere"])
@pytest.mark.parametrize("coding", ["gzip", "br", "identity", "\x0b"])
async def test_any_content_coding_is_a_415(url: str, coding: str) -> None:
    answer = await ask("POST", url, content=b"{}", headers=JSON | {"content-encoding": coding})

    assert answer.status_code == 415


async def test_no_body_needs_no_content_type() -> None:
    assert (await ask("POST", "/orders/7/cancel")).json() == "7"
    assert (await ask("POST", "/orders/7/cancel", headers={"content-type": "text/plain"})).status_code == 200


async def test_an_empty_body_where_json_is_needed_is_a_400() -> None:
    for options in ({}, {"content": b"", "headers": JSON}):
        assert slug(await ask("POST", "/orders", **options)) == "unreadable-body"


async def test_a_callback_is_handed_on_whatever_it_is() -> None:
    answer = await ask("POST", "/callbacks/7", content=b"\xff\x00{", headers={"content-type": "text/html"})

    assert answer.content == b"\xff\x00{"


@pytest.mark.parametrize(
    ("url", "size", "status"),
    [
        ("/orders", 64 * KIB, 422),
        ("/orders", 64 * KIB + 1, 413),
        ("/callbacks/7", 1024 * KIB, 200),
        ("/callbacks/7", 1024 * KIB + 1, 413),
        ("/callbacks/unread", 1024 * KIB + 1, 413),
        ("/nowhere", 64 * KIB + 1, 413),
    ],
)
async def test_a_body_may_be_so_large_and_no_larger(url: str, size: int, status: int) -> None:
    answer = await ask("POST", url, content=b'"' + b"a" * (size - 2) + b'"', headers=JSON)

    assert answer.status_code == status


@pytest.mark.parametrize(("url", "allowed"), [("/orders", 64), ("/callbacks/7", 1024)])
async def test_a_body_of_unknown_length_is_refused_as_soon_as_it_is_too_large(url: str, allowed: int) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b" " * KIB

    answer = await ask("POST", url, content=endless(), headers=JSON)

    assert slug(answer) == "content-too-large"
    assert taken == allowed + 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
async def test_the_cap_holds_for_methods_that_should_have_no_body(method: str) -> None:
    answer = await ask(method, "/orders/7", content=b"a" * 70_000)

    assert answer.status_code == 413


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "9" * 5000, "٣"])
async def test_a_length_that_is_none_is_a_400(length: str) -> None:
    headers = [(b"content-length", length.encode())]

    assert slug(await ask("POST", "/orders", content=b"{}", headers=headers)) == "unreadable-request"


@pytest.mark.parametrize(
    "path", ["%00", "a%00b", "%FF", "%C0%AF", "%ED%A0%80", "%", "%zz", "%2", "%F4%90%80%80", "%u0041"]
)
async def test_a_path_that_is_no_text_is_a_404(path: str) -> None:
    status, body = await raw_request("GET", f"/orders/{path}".encode())

    assert status == 404
    assert json.loads(body)["type"] == "/problems/not-found"


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("note=%00", ["#/query/note"]),
        ("note=%FF", ["#/query/note"]),
        ("note=%ED%A0%80", ["#/query/note"]),
        ("note=100%", ["#/query/note"]),
        ("a%20b=%zz&note=fine&c+d=%00", ["#/query/a%20b", "#/query/c%20d"]),
        ("%00=1", ["#/query"]),
        ("other=%00", ["#/query/other"]),
    ],
)
async def test_a_query_value_that_is_no_text_is_a_422(query: str, pointers: list[str]) -> None:
    status, body = await raw_request("GET", b"/orders/7", query.encode())

    assert status == 422
    assert [error["pointer"] for error in json.loads(body)["errors"]] == pointers


async def test_a_query_that_is_text_reaches_the_route() -> None:
    _, body = await raw_request("GET", b"/orders/%C3%A9", b"note=a+b%20%F0%9F%8C%A7&&=")

    assert json.loads(body) == {"id": "é", "note": "a b 🌧"}


async def test_every_answer_is_marked_against_sniffing() -> None:
    for answer in (await ask("GET", "/orders/7"), await ask("GET", "/nowhere"), await ask("GET", "/openapi.json")):
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_page_stands_in_no_frame_and_runs_no_foreign_script() -> None:
    page, data = await ask("GET", "/docs"), await ask("GET", "/orders/7")

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search("unsafe|http|[*]", policy)
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert "content-security-policy" not in data.headers


async def test_a_client_that_leaves_within_its_body_reaches_no_route() -> None:
    reached = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached = True

    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]
    await through(app, messages)

    assert not reached


async def test_an_answer_that_breaks_off_is_not_begun_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise KeyError("half way")

    sent = await through(app, [{"type": "http.request", "body": b"{}", "more_body": False}])

    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_a_request_cut_off_by_a_stop_may_be_retried() -> None:
    started = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    sent: list[Message] = []
    request = asyncio.create_task(through(app, [{"type": "http.request", "body": b"{}"}], sent))
    await started.wait()
    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"2") in sent[0]["headers"]


async def through(app: Any, incoming: list[Message], sent: list[Message] | None = None) -> list[Message]:
    """Ask an app behind the edge, message by message (from the end of the list)."""
    sent = [] if sent is None else sent

    async def receive() -> Message:
        return incoming.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await EdgeMiddleware(app)(scope_of("POST", b"/orders", headers=[(b"transfer-encoding", b"chunked")]), receive, send)
    return sent


async def raw_request(method: str, path: bytes, query: bytes = b"", **services: Any) -> tuple[int, bytes]:
    """Ask below httpx, which would repair what is broken."""
    sent: list[Message] = []
    body = services.pop("body", b"")

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    services["headers"] = [(b"content-length", str(len(body)).encode()), *services.get("headers", [])]
    await shop()(scope_of(method, path, query, **services), receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def scope_of(method: str, path: bytes, query: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "root_path": "",
        "query_string": query,
        "headers": [(b"content-type", b"application/json"), *headers],
    }


JUNK = st.binary(max_size=40) | st.sampled_from([b"[" * 1000, b"1e999", rb'"\ud800"', b"%00", b"\xff", b"1" * 5000])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(list(Order.model_fields)), inner),
)
HEADER_NAMES = st.sampled_from([b"content-type", b"content-encoding", b"prefer", b"host", b"accept", b"authorization"])


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]),
    path=st.sampled_from([b"/orders", b"/orders/", b"/callbacks/", b"/", b""]).flatmap(
        lambda start: JUNK.map(lambda junk: start + junk)
    ),
    query=JUNK,
    headers=st.lists(st.tuples(HEADER_NAMES, JUNK), max_size=4),
    body=JUNK | DOCUMENTS.map(lambda document: json.dumps(document).encode()),
)
def test_no_bytes_are_answered_with_a_5xx(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    status, content = asyncio.run(raw_request(method, path, query, headers=headers, body=body))

    assert status < 500
    assert status < 400 or len(content) <= 2000


@settings(max_examples=200, deadline=None)
@given(body=DOCUMENTS.map(lambda document: json.dumps(document).encode()))
def test_no_document_is_answered_with_a_5xx(body: bytes) -> None:
    status, content = asyncio.run(raw_request("POST", b"/orders", body=body))

    assert status in (200, 400, 422)
    assert len(content) <= 2000 or status == 200
