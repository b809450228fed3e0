"""No token of a callback URL stays in what the upstream repeats to us."""

import json
from urllib.parse import quote

import pytest

from app.observability.redaction import loggable_path, redact, redact_log_value

TOKEN = "Zx9_planted-canary.1"
URL = f"https://sound.example/base/callbacks/0197c0de0197c0de0197c0de0197c0de/{TOKEN}"

SPELLINGS = {
    "plain": URL,
    "with a query": f"{URL}?a=b",
    "in JSON": json.dumps({"callBackUrl": URL}),
    "in JSON with escaped slashes": json.dumps({"callBackUrl": URL}).replace("/", "\\/"),
    "in JSON with slashes by number": json.dumps({"callBackUrl": URL}).replace("/", "\\u002F"),
    "in JSON in JSON": json.dumps({"param": json.dumps({"callBackUrl": URL}).replace("/", "\\/")}),
    "percent-encoded": quote(URL, safe=""),
    "percent-encoded in lower case": quote(URL, safe="").lower().replace(TOKEN.lower(), TOKEN),
    "percent-encoded twice": quote(quote(URL, safe=""), safe=""),
    "percent-encoded JSON": quote(json.dumps({"callBackUrl": URL}), safe=""),
    "between others": f"{URL} and {URL}, twice",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_token_is_masked_in_every_spelling(text: str) -> None:
    assert TOKEN not in redact(text)
    assert redact(text) == text.replace(TOKEN, "***")
    assert redact(text.encode()) == text.replace(TOKEN, "***").encode()


@pytest.mark.parametrize(
    "text",
    ["", "callbacks", "/callbacks/", "/callbacks/id", "/callbacks/id/", "no callbacks / here / today", "é\ud800"],
)
def test_text_without_a_token_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_bytes_of_any_kind_stay_as_they_are() -> None:
    every_byte = bytes(range(256))
    assert redact(every_byte) == every_byte
    assert redact(b"\xff/callbacks/id/secret\xfe") == b"\xff/callbacks/id/***\xfe"


@pytest.mark.parametrize(
    "text",
    [
        "cannot open postgresql://someone:canary@host/name",
        "http://someone:can@ary@host",
        "sslpassword=canary sslmode=x",
    ],
)
def test_password_in_a_url_or_a_parameter_is_masked_in_logs(text: str) -> None:
    masked = redact_log_value(text)

    assert "ary" not in masked
    assert "***" in masked


def test_masking_twice_changes_nothing_more() -> None:
    assert redact(redact(URL)) == redact(URL)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/tasks/01a2", "/v1/tasks/01a2"),
        (f"/v1/tasks/01a2expires=1&scope=task&signature={TOKEN}", "/v1/tasks/01a2expires=1&scope=task&signature=…"),
        (f"/callback/01a2/{TOKEN}", "/callback…"),
    ],
)
def test_secret_of_a_misspelt_url_is_left_out_of_its_path(path: str, shown: str) -> None:
    assert loggable_path(path) == shown
