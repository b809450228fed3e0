"""Nothing the upstream, or somebody in its place, can send breaks the readers."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.upstream.suno.reports import read_callback, read_credits, read_lyrics, read_record_info, read_submit
from app.upstream.types import Outcome, Report, Stage

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ERROR_CODES = {"content_rejected", "insufficient_credits", "upstream_failed"}

NAMES = [
    *("code", "msg", "message", "data", "response", "sunoData", "suno_data", "alignedWords", "word", "startS", "endS"),
    *("taskId", "task_id", "callbackType", "callback_type", "status", "errorCode", "errorMessage", "param", "0"),
    *("id", "audio_url", "audioUrl", "source_audio_url", "image_url", "title", "tags", "duration", "model_name"),
]
WORDS = [
    "complete",
    "first",
    "error",
    "SUCCESS",
    "CALLBACK_EXCEPTION",
    "FAILED",
    "https://cdn.example/a.mp3",
    "200",
    "\x00",
]
CODES = [200, 400, 401, 405, 422, 429, 500, 531]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.just(10**400)
    | ANY_TEXT
    | st.sampled_from(WORDS)
    | st.sampled_from(CODES)
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(NAMES) | ANY_TEXT
    objects = st.dictionaries(names, inner, max_size=8)
    return st.lists(inner, max_size=4) | objects | objects.map(json.dumps)


JSON = st.recursive(SCALARS, nested, max_leaves=30)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from(CODES) | SCALARS,
        "msg": SCALARS,
        "data": st.dictionaries(st.sampled_from(NAMES), JSON, max_size=8) | JSON,
    },
)
BODIES = st.binary() | (JSON | ENVELOPES).map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "retry-after", "X"]), ANY_TEXT)
STATUSES = st.integers(100, 599)

# How long an example takes says nothing here, and differs from machine to machine.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fits_any_database(text: str | None) -> bool:
    return text is None or ("\x00" not in text and text.encode().decode() == text)


def is_sound(report: Report) -> bool:
    texts = [report.upstream_task_id, report.message]
    for clip in report.clips:
        texts += [clip.upstream_clip_id, clip.title, clip.tags, clip.model_name]
        texts += [clip.image_url, clip.audio_url, clip.source_audio_url]
    failed = report.stage is Stage.failed
    return (
        all(map(fits_any_database, texts))
        and (report.error_code in ERROR_CODES if failed else report.error_code is None)
        and (failed or not report.refunded)
        and (report.stage is not Stage.succeeded or any(clip.has_audio for clip in report.clips))
    )


@unhurried
@given(body=BODIES)
def test_any_callback_is_read_or_unreadable(body: bytes) -> None:
    report = read_callback(body)
    assert report is None or is_sound(report)


@unhurried
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_any_response_to_a_submit_has_an_outcome(status: int, headers: dict[str, str], body: bytes) -> None:
    answer = read_submit(status, headers, body, NOW)
    assert (answer.outcome is Outcome.ok) == (answer.value is not None)
    assert (answer.outcome is Outcome.held) == (answer.hold_reason is not None)
    assert answer.outcome is not Outcome.not_sent
    assert fits_any_database(answer.message)


@unhurried
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_any_response_to_a_poll_has_an_outcome(status: int, headers: dict[str, str], body: bytes) -> None:
    answer = read_record_info(status, headers, body, NOW)
    assert (answer.outcome is Outcome.ok) == (answer.value is not None)
    assert answer.value is None or is_sound(answer.value)
    assert fits_any_database(answer.message)


@unhurried
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_any_response_about_credits_or_lyrics_is_read(status: int, headers: dict[str, str], body: bytes) -> None:
    credit = read_credits(status, headers, body, NOW).value
    assert credit is None or credit.is_finite()
    assert all(fits_any_database(word.word) for word in read_lyrics(status, headers, body, NOW).value or ())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"data":' * 100_000,
        b'{"code":200,"data":' + b"[" * 800 + b"]" * 800 + b"}",
        b'{"code":' + b"9" * 5000 + b"}",
        b'{"code":1e400,"data":{"duration":1e400}}',
        b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(50_000)) + b"}",
    ],
    ids=["open lists", "open objects", "nested lists", "long number", "huge numbers", "many keys"],
)
def test_bodies_made_to_hurt_say_nothing(body: bytes) -> None:
    report = read_callback(body)
    assert report is None or report.stage is Stage.running
    assert read_record_info(200, {}, body, NOW).outcome in {Outcome.failed, Outcome.ok}
    assert read_submit(200, {}, body, NOW).outcome is Outcome.ambiguous
