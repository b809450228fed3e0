"""What the account has left, and the words of a clip with their times."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from app.upstream.suno.reports import read_credits, read_lyrics
from app.upstream.types import HoldReason, LyricWord, Outcome, Result

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)

FAILURES = [
    (200, b'{"code":405,"msg":"why"}', Outcome.throttled, None, 405, "why"),
    (200, b'{"code":430}', Outcome.throttled, None, 430, None),
    (429, b"", Outcome.throttled, None, 429, "HTTP 429 without an envelope"),
    (200, b'{"code":401,"msg":"why"}', Outcome.held, HoldReason.bad_key, 401, "why"),
    (401, b"", Outcome.held, HoldReason.bad_key, 401, "HTTP 401 without an envelope"),
    (200, b'{"code":429,"msg":"why"}', Outcome.held, HoldReason.no_credits, 429, "why"),
    (200, b'{"code":500,"msg":"why"}', Outcome.failed, None, 500, "why"),
    (200, b'{"code":400,"msg":"why"}', Outcome.failed, None, 400, "why"),
    (200, b"<html>", Outcome.failed, None, 200, "HTTP 200 without an envelope"),
    (200, b'{"data":5}', Outcome.failed, None, 200, "HTTP 200 without an envelope"),
    (404, b"<html>", Outcome.failed, None, 404, "HTTP 404 without an envelope"),
    (410, b"", Outcome.failed, None, 410, "HTTP 410 without an envelope"),
    (502, b"", Outcome.failed, None, 502, "HTTP 502 without an envelope"),
]


@pytest.mark.parametrize(("status", "body", "outcome", "reason", "code", "message"), FAILURES)
def test_failures_to_read_are_distinguished(
    status: int, body: bytes, outcome: Outcome, reason: HoldReason | None, code: int, message: str | None
) -> None:
    wait = timedelta(seconds=3)
    headers = {"retry-after": "3"}
    assert read_credits(status, headers, body, NOW) == Result(outcome, None, code, message, wait, reason)
    assert read_lyrics(status, headers, body, NOW) == Result(outcome, None, code, message, wait, reason)


def test_block_page_in_place_of_the_lyrics_of_one_clip_holds_nothing() -> None:
    answers = [read(403, {}, b"<html>", NOW) for read in (read_credits, read_lyrics)]

    assert [answer.hold_reason for answer in answers] == [HoldReason.blocked, None]
    assert answers[1].outcome is Outcome.failed


@pytest.mark.parametrize(
    ("written", "amount"),
    [("1025.6", "1025.6"), ("1025", "1025"), ('"1025.6"', "1025.6"), ("0", "0"), ("0.1", "0.1"), ("-2.5", "-2.5")],
)
def test_credits_keep_their_fraction(written: str, amount: str) -> None:
    answer = read_credits(200, {}, f'{{"code":200,"msg":"success","data":{written}}}'.encode(), NOW)
    assert answer == Result(Outcome.ok, Decimal(amount), 200, "success")


@pytest.mark.parametrize("written", ["null", "true", '""', '"many"', "[]", "{}", "NaN", "1e999", '"inf"', "9" * 400])
def test_credits_that_are_no_number_are_a_failure(written: str) -> None:
    answer = read_credits(200, {}, f'{{"code":200,"data":{written}}}'.encode(), NOW)
    assert (answer.outcome, answer.value) == (Outcome.failed, None)


def lyrics(data: object) -> Result[tuple[LyricWord, ...]]:
    return read_lyrics(200, {}, json.dumps({"code": 200, "msg": "success", "data": data}).encode(), NOW)


def test_words_come_with_their_times() -> None:
    words = [
        {"word": "Soft ", "success": True, "startS": 0, "endS": 0.5, "palign": 0},
        {"word": "rain", "success": True, "start_s": "0.5", "end_s": 1.25},
    ]
    assert lyrics({"alignedWords": words, "waveformData": [], "hootCer": 0.38, "isStreamed": False}) == Result(
        Outcome.ok, (LyricWord("Soft", 0.0, 0.5), LyricWord("rain", 0.5, 1.25)), 200, "success"
    )


@pytest.mark.parametrize(
    "data",
    [None, [], {}, "", {"alignedWords": None}, {"alignedWords": []}, {"alignedWords": {}}, {"aligned_words": "x"}],
)
def test_empty_lyrics_are_a_result(data: object) -> None:
    assert lyrics(data) == Result(Outcome.ok, (), 200, "success")


@pytest.mark.parametrize(
    "word",
    [
        None,
        "rain",
        {},
        {"word": "", "startS": 0, "endS": 1},
        {"word": None, "startS": 0, "endS": 1},
        {"word": "a", "startS": None, "endS": 1},
        {"word": "a", "startS": 0},
        {"word": "a", "startS": 2, "endS": 1},
        {"word": "a", "startS": -1, "endS": 1},
        {"word": "a", "startS": True, "endS": 1},
    ],
)
def test_word_without_text_or_times_is_left_out(word: object) -> None:
    good = {"word": "rain", "startS": 1, "endS": 2}
    assert lyrics({"alignedWords": [word, good]}).value == (LyricWord("rain", 1.0, 2.0),)
