"""Reports from callbacks and polls, in every spelling seen."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from app.enums import ErrorCode
from app.upstream.suno.reports import read_callback, read_record_info
from app.upstream.types import Report, ReportedClip, Stage

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
A = "https://cdn.example/a.mp3"


def callback(body: object) -> Report:
    report = read_callback(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert report is not None
    return report


def called_back(kind: object, *items: object, code: object = 200) -> Report:
    return callback({"code": code, "msg": "m", "data": {"callbackType": kind, "task_id": "2fac9f72", "data": items}})


def poll(body: object) -> Report:
    report = read_record_info(200, {}, json.dumps(body).encode(), NOW).value
    assert report is not None
    return report


def polled(status: object, *items: object, **data: object) -> Report:
    response = {"taskId": "7d9e", "sunoData": items}
    record = {"taskId": "7d9e", "response": response, "status": status} | data
    return poll({"code": 200, "msg": "success", "data": record})


SNAKE = {
    "id": "8551-662c",
    "audio_url": A,
    "source_audio_url": "https://cdn.example/s.mp3",
    "stream_audio_url": "https://cdn.example/a",
    "source_stream_audio_url": "https://cdn.example/ss",
    "image_url": "https://cdn.example/a.jpeg",
    "source_image_url": "https://cdn.example/s.jpeg",
    "prompt": "rain",
    "model_name": "chirp-v3-5",
    "title": "Iron Man",
    "tags": "electrifying, rock",
    "createTime": "2025-01-01 00:00:00",
    "duration": 198.44,
}
CAMEL = {
    "id": "8551-662c",
    "audioUrl": A,
    "sourceAudioUrl": "https://cdn.example/s.mp3",
    "streamAudioUrl": "https://cdn.example/a",
    "imageUrl": "https://cdn.example/a.jpeg",
    "modelName": "chirp-v3-5",
    "title": "Iron Man",
    "tags": "electrifying, rock",
    "createTime": 1780002218360,
    "duration": "198.44",
}
CLIP = ReportedClip(
    upstream_clip_id="8551-662c",
    title="Iron Man",
    tags="electrifying, rock",
    duration=198.44,
    model_name="chirp-v3-5",
    image_url="https://cdn.example/a.jpeg",
    audio_url=A,
    source_audio_url="https://cdn.example/s.mp3",
)


@pytest.mark.parametrize("item", [SNAKE, CAMEL])
def test_clip_reads_alike_in_both_spellings_of_callback_and_poll(item: dict[str, object]) -> None:
    assert called_back("complete", item).clips == (CLIP,)
    assert polled("SUCCESS", item).clips == (CLIP,)


SHAPES: list[Any] = [
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": [SNAKE]}},
    {"code": 200, "data": {"callback_type": "Complete", "taskId": "t-1", "data": [CAMEL]}},
    {"code": "200", "data": {"callbackType": "COMPLETE", "task_id": None, "data": [SNAKE]}, "taskId": "t-1"},
    {"code": 200, "data": {"callbackType": "complete", "data": [SNAKE]}, "task_id": "t-1"},
    {"code": 200, "callbackType": "complete", "task_id": "t-1", "data": [SNAKE]},
    {"data": {"callbackType": "complete", "task_id": "t-1", "data": [SNAKE]}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": SNAKE}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": {"0": SNAKE}}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": json.dumps([SNAKE])}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": [json.dumps(SNAKE)]}},
    {"code": 200, "data": json.dumps({"callbackType": "complete", "task_id": "t-1", "data": [SNAKE]})},
    {"code": 200, "data": {"taskId": "t-1", "status": "SUCCESS", "response": {"sunoData": [CAMEL]}}},
    {"code": 200, "data": {"status": "success", "response": {"taskId": "t-1", "suno_data": [SNAKE]}}},
    {"code": 200, "data": {"task_id": "t-1", "status": "SUCCESS", "response": json.dumps({"sunoData": [CAMEL]})}},
    {"taskId": "t-1", "status": "SUCCESS", "response": {"data": [CAMEL]}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "clips": [SNAKE]}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": None, "tracks": [SNAKE]}},
    {"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": [{"index": 0, "clip": SNAKE}]}},
    [{"code": 200, "data": {"callbackType": "complete", "task_id": "t-1", "data": [SNAKE]}}],
    {"code": 200, "data": {"taskId": "t-1", "status": "SUCCESS", "response": {"songs": [CAMEL], "n": [{"a": 1}]}}},
    {"code": 200, "data": {"taskId": "t-1", "status": "SUCCESS", "result": json.dumps({"items": [CAMEL]})}},
    {"code": 200, "data": {"taskId": "t-1", "status": "COMPLETED", "response": {"sunoData": [CAMEL]}}},
]


@pytest.mark.parametrize("body", SHAPES)
def test_callback_reads_alike_in_every_shape(body: object) -> None:
    report = callback(body)
    assert (report.stage, report.upstream_task_id, report.clips) == (Stage.succeeded, "t-1", (CLIP,))
    assert (report.code, report.error_code, report.refunded) == (None, None, False)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("text", Stage.running),
        ("first", Stage.running),
        ("SECOND", Stage.running),
        ("cover", Stage.running),
        ("", Stage.running),
        (None, Stage.running),
        (7, Stage.running),
        ("complete", Stage.succeeded),
        (" Complete ", Stage.succeeded),
        ("error", Stage.failed),
        ("ERROR", Stage.failed),
    ],
)
def test_callback_type_sets_the_stage(kind: object, stage: Stage) -> None:
    assert called_back(kind, SNAKE).stage is stage


@pytest.mark.parametrize(
    ("word", "stage"),
    [
        ("COMPLETED", Stage.succeeded),
        ("Successful", Stage.succeeded),
        ("succeeded", Stage.succeeded),
        ("FAILURE", Stage.failed),
        ("Error_Upstream", Stage.failed),
        ("TIMEOUT", Stage.failed),
        ("task_timed_out", Stage.failed),
        ("GENERATE_IMAGE_FAILED", Stage.failed),
        ("Failed: no idea", Stage.failed),
        ("timed-out", Stage.failed),
        ("time out.", Stage.failed),
        ("unsuccessful", Stage.failed),
        ("complete!", Stage.succeeded),
        ("Completed (2 of 2)", Stage.succeeded),
        ("incomplete", Stage.running),
        ("PARTIAL_SUCCESS", Stage.running),
        ("brewing", Stage.running),
        ("CALLBACK_FAILED", Stage.succeeded),
    ],
)
def test_unknown_word_is_read_by_its_kind_and_reported(word: str, stage: Stage) -> None:
    for report in (called_back(word, SNAKE), polled(word, CAMEL)):
        assert (report.stage, report.unknown_word) == (stage, word)
    assert called_back(word).stage in (stage, Stage.unclear)


def test_success_in_an_unknown_word_still_needs_a_clip_with_audio() -> None:
    assert called_back("COMPLETED", SNAKE | {"audio_url": "", "source_audio_url": ""}).stage is Stage.unclear


@pytest.mark.parametrize(
    ("word", "stage"),
    [
        ("PENDING", Stage.running),
        ("TEXT_SUCCESS", Stage.running),
        ("FIRST_SUCCESS", Stage.running),
        ("GENERATING", Stage.running),
        ("processing", Stage.running),
        ("SOMETHING_NEW", Stage.running),
        (None, Stage.running),
        (3, Stage.running),
        ("SUCCESS", Stage.succeeded),
        ("success", Stage.succeeded),
        ("CALLBACK_EXCEPTION", Stage.succeeded),
        ("CREATE_TASK_FAILED", Stage.failed),
        ("GENERATE_AUDIO_FAILED", Stage.failed),
        ("SENSITIVE_WORD_ERROR", Stage.failed),
        ("Failed", Stage.failed),
    ],
)
def test_poll_status_sets_the_stage(word: object, stage: Stage) -> None:
    assert polled(word, CAMEL).stage is stage


SILENT: dict[str, object] = {"id": "x", "audio_url": "", "stream_audio_url": "https://cdn.example/stream"}


@pytest.mark.parametrize(
    "reported", [lambda *items: called_back("complete", *items), lambda *items: polled("SUCCESS", *items)]
)
def test_success_without_any_audio_is_unclear(reported: Callable[..., Report]) -> None:
    assert reported().stage is Stage.unclear
    assert reported(SILENT).stage is Stage.unclear
    assert reported({"id": "x", "audioUrl": None}).stage is Stage.unclear
    assert reported(SILENT, SNAKE).stage is Stage.succeeded


def test_source_url_alone_counts_as_audio() -> None:
    report = called_back("complete", {"id": "x", "audio_url": "", "source_audio_url": A})
    assert (report.stage, report.clips[0].audio_url, report.clips[0].source_audio_url) == (Stage.succeeded, None, A)
    assert report.clips[0].has_audio


def test_callback_exception_succeeds_only_with_audio_in_every_clip() -> None:
    assert polled("CALLBACK_EXCEPTION").stage is Stage.unclear
    assert polled("CALLBACK_EXCEPTION", SNAKE, SILENT).stage is Stage.unclear
    assert polled("CALLBACK_EXCEPTION", SNAKE, CAMEL).stage is Stage.succeeded


@pytest.mark.parametrize("items", [None, [], "", "[]", "no json", {}, 0, [None, 5, "x", []]])
def test_missing_clips_are_no_clips(items: object) -> None:
    assert callback({"code": 200, "data": {"callbackType": "text", "task_id": "t", "data": items}}).clips == ()
    assert poll({"code": 200, "data": {"status": "PENDING", "response": {"sunoData": items}}}) == Report(
        Stage.running, message="PENDING"
    )
    assert poll({"code": 200, "data": {"status": "PENDING", "response": items}}) == Report(
        Stage.running, message="PENDING"
    )


FAILURES = [
    (400, ErrorCode.content_rejected, False),
    (413, ErrorCode.content_rejected, False),
    (402, ErrorCode.insufficient_credits, False),
    (429, ErrorCode.insufficient_credits, False),
    (408, ErrorCode.upstream_failed, False),
    (451, ErrorCode.upstream_failed, False),
    (500, ErrorCode.upstream_failed, False),
    (501, ErrorCode.upstream_failed, False),
    (531, ErrorCode.upstream_failed, True),
    (201, ErrorCode.upstream_failed, False),
    (777, ErrorCode.upstream_failed, False),
]


@pytest.mark.parametrize("kind", ["error", "complete", "text", None])
@pytest.mark.parametrize(("code", "error_code", "refunded"), FAILURES)
def test_callback_code_other_than_200_is_a_failure_whatever_its_type(
    code: int, error_code: ErrorCode, refunded: bool, kind: str | None
) -> None:
    for written in (code, str(code), float(code)):
        body = {
            "code": written,
            "msg": "it failed",
            "data": {"callbackType": kind, "task_id": "2fac9f72", "data": None},
        }
        assert callback(body) == Report(Stage.failed, "2fac9f72", (), code, "it failed", error_code, refunded)


@pytest.mark.parametrize(("code", "error_code", "refunded"), FAILURES)
def test_poll_failure_is_named_by_its_error_code(code: int, error_code: ErrorCode, refunded: bool) -> None:
    for written in (code, str(code)):
        report = polled("GENERATE_AUDIO_FAILED", errorCode=written, errorMessage="no")
        assert report == Report(Stage.failed, "7d9e", (), code, "no", error_code, refunded)


def test_poll_failure_without_code_or_message_is_named_by_its_status() -> None:
    report = polled("GENERATE_AUDIO_FAILED", errorCode=None, errorMessage="")
    assert report == Report(Stage.failed, "7d9e", message="GENERATE_AUDIO_FAILED", error_code=ErrorCode.upstream_failed)


def test_sensitive_word_errors_are_rejected_content_in_every_field() -> None:
    assert polled("SENSITIVE_WORD_ERROR", errorCode=500).error_code == "content_rejected"
    assert polled("FAILED", errorCode="SENSITIVE_WORD_ERROR").error_code == "content_rejected"


def test_failure_with_code_200_in_the_envelope_keeps_its_message() -> None:
    report = called_back("error")
    assert report == Report(Stage.failed, "2fac9f72", message="m", error_code=ErrorCode.upstream_failed)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'"text"',
        b"<html>",
        b"\xff\xfe",
        b'{"code":',
        b'{"hello": "world"}',
        b"[" * 100_000,
    ],
)
def test_callback_without_content_is_unreadable(body: bytes) -> None:
    assert read_callback(body) is None


@pytest.mark.parametrize("task_id", [None, "", "a b", "../x", "x" * 201, True, 1.5, [], {}])
def test_id_of_an_impossible_form_is_none(task_id: object) -> None:
    assert callback({"code": 200, "data": {"callbackType": "text", "task_id": task_id}}).upstream_task_id is None


@pytest.mark.parametrize("response", [None, "", "null", "{}"])
def test_success_without_a_response_is_unclear(response: object) -> None:
    assert polled("SUCCESS", response=response).stage is Stage.unclear
