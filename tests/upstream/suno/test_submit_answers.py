"""The outcome of each response to a submit."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from app.upstream.suno.envelope import RESULTS_BY_BODY_CODE
from app.upstream.suno.reports import read_submit
from app.upstream.types import HoldReason, Outcome, Result

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
TASK_ID = "5c79be8e0f3d4b6a9d2f1c7e8a5b4d3f"


def submit(status: int, body: object, **headers: str) -> Result[str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_submit(status, named, raw, NOW)


BODY_CODES = [
    (400, Outcome.invalid, None),
    (404, Outcome.rejected, None),
    (409, Outcome.rejected, None),
    (413, Outcome.invalid, None),
    (422, Outcome.invalid, None),
    (505, Outcome.rejected, None),
    (401, Outcome.held, HoldReason.bad_key),
    (402, Outcome.held, HoldReason.no_credits),
    (429, Outcome.held, HoldReason.no_credits),
    (403, Outcome.held, HoldReason.blocked),
    (405, Outcome.throttled, None),
    (430, Outcome.throttled, None),
    (433, Outcome.throttled, None),
    (455, Outcome.throttled, None),
    (503, Outcome.throttled, None),
    (408, Outcome.ambiguous, None),
    (451, Outcome.ambiguous, None),
    (500, Outcome.ambiguous, None),
    (501, Outcome.ambiguous, None),
    (502, Outcome.ambiguous, None),
    (504, Outcome.ambiguous, None),
    (531, Outcome.ambiguous, None),
    (0, Outcome.ambiguous, None),
    (-1, Outcome.ambiguous, None),
    (201, Outcome.ambiguous, None),
    (299, Outcome.ambiguous, None),
    (418, Outcome.ambiguous, None),
    (999, Outcome.ambiguous, None),
]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 405, 429, 500, 502])
@pytest.mark.parametrize(("code", "outcome", "reason"), BODY_CODES)
def test_code_in_the_body_decides_whatever_the_http_status(
    status: int, code: int, outcome: Outcome, reason: HoldReason | None
) -> None:
    answer = submit(status, {"code": code, "msg": "why", "data": None})
    assert answer == Result(outcome, code=code, message="why", hold_reason=reason)


def test_every_code_of_the_table_has_a_row_here() -> None:
    assert set(RESULTS_BY_BODY_CODE) - {200} - {code for code, _, _ in BODY_CODES} == set()


@pytest.mark.parametrize("code", [405, "405", " 405 ", 405.0])
def test_code_counts_as_an_integer_however_it_is_written(code: object) -> None:
    answer = submit(200, {"code": code, "data": None})
    assert (answer.outcome, answer.code) == (Outcome.throttled, 405)


@pytest.mark.parametrize("code", [True, None, "", "OK", 405.5, [405], {"code": 405}, 10**30, "9" * 30, 2**31])
def test_code_of_another_kind_leaves_it_to_the_http_status(code: object) -> None:
    answer = submit(401, {"code": code, "data": None})
    assert (answer.outcome, answer.code) == (Outcome.held, 401)


BARE_STATUSES = [
    (301, Outcome.held, HoldReason.blocked),
    (302, Outcome.held, HoldReason.blocked),
    (307, Outcome.held, HoldReason.blocked),
    (400, Outcome.held, HoldReason.blocked),
    (401, Outcome.held, HoldReason.bad_key),
    (402, Outcome.held, HoldReason.no_credits),
    (403, Outcome.held, HoldReason.blocked),
    (404, Outcome.held, HoldReason.blocked),
    (405, Outcome.throttled, None),
    (408, Outcome.held, HoldReason.blocked),
    (413, Outcome.held, HoldReason.blocked),
    (422, Outcome.held, HoldReason.blocked),
    (429, Outcome.throttled, None),
    (430, Outcome.throttled, None),
    (433, Outcome.throttled, None),
    (451, Outcome.held, HoldReason.blocked),
    (455, Outcome.throttled, None),
    (503, Outcome.throttled, None),
    (200, Outcome.ambiguous, None),
    (201, Outcome.ambiguous, None),
    (204, Outcome.ambiguous, None),
    (500, Outcome.ambiguous, None),
    (501, Outcome.ambiguous, None),
    (502, Outcome.ambiguous, None),
    (504, Outcome.ambiguous, None),
    (505, Outcome.ambiguous, None),
    (520, Outcome.ambiguous, None),
    (531, Outcome.ambiguous, None),
    (599, Outcome.ambiguous, None),
]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>error code: 1010</html>", b"null", b"[]", b'"no"', b"200", b'{"code":', b"\x1f\x8b\x08\xff", b"{}"],
)
@pytest.mark.parametrize(("status", "outcome", "reason"), BARE_STATUSES)
def test_http_status_decides_without_an_envelope(
    status: int, outcome: Outcome, reason: HoldReason | None, body: bytes
) -> None:
    answer = submit(status, body)
    assert (answer.outcome, answer.code, answer.hold_reason) == (outcome, status, reason)
    assert answer.message == f"HTTP {status} without an envelope"


@pytest.mark.parametrize(
    "body",
    [
        {"code": 200, "msg": "success", "data": {"taskId": TASK_ID}},
        {"code": 200, "msg": "success", "data": {"task_id": TASK_ID}},
        {"code": "200", "msg": "success", "data": {"taskId": TASK_ID}},
        {"code": 200.0, "msg": "success", "data": {"TaskID": TASK_ID}},
        {"code": 200, "msg": "success", "data": json.dumps({"taskId": TASK_ID})},
        {"code": 200, "msg": "success", "data": {"taskId": "", "task_id": TASK_ID}},
        {"code": 200, "msg": "success", "data": {"taskId": None}, "taskId": TASK_ID},
        {"code": 200, "msg": "success", "data": None, "task_id": TASK_ID},
        {"msg": "success", "data": {"taskId": TASK_ID}},
        b'\xef\xbb\xbf{"code":200,"msg":"success","data":{"taskId":"%s"}}' % TASK_ID.encode(),
        b'{"code":200,"msg":"success","data":{"taskId":"%s","note":"\xff\xfe","n":NaN}}' % TASK_ID.encode(),
    ],
)
def test_success_names_its_task_in_every_spelling(body: object) -> None:
    assert submit(200, body) == Result(Outcome.ok, TASK_ID, code=200, message="success")


@pytest.mark.parametrize("task_id", ["a", "A-b_9", "x" * 200])
def test_id_of_an_unusual_form_is_taken(task_id: str) -> None:
    assert submit(200, {"code": 200, "data": {"taskId": task_id}}).value == task_id


def test_number_as_id_is_taken_as_its_digits() -> None:
    answer = submit(200, {"code": 200, "data": {"taskId": 1234567890123456789}})
    assert answer.value == "1234567890123456789"


UNREADABLE_IDS: list[object] = [None, "", "a b", "é", "x" * 201, "a\n", True, 1.5, -1, []]


@pytest.mark.parametrize(
    "data", [None, [], {}, "", "created", 7, True, *({"taskId": task_id} for task_id in UNREADABLE_IDS)]
)
def test_success_without_a_readable_id_is_ambiguous(data: object) -> None:
    answer = submit(200, {"code": 200, "msg": "success", "data": data})
    assert (answer.outcome, answer.value) == (Outcome.ambiguous, None)


def test_error_never_carries_an_id() -> None:
    answer = submit(200, {"code": 500, "data": {"taskId": TASK_ID}})
    assert (answer.outcome, answer.value) == (Outcome.ambiguous, None)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        ("7", timedelta(seconds=7)),
        (" 1.5 ", timedelta(seconds=1.5)),
        ("999999999", timedelta(hours=1)),
        ("Thu, 01 Jan 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 12:00:30 -0000", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 14:00:30 +0200", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 11:00:00 GMT", timedelta(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", timedelta(hours=1)),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1e9", None),
        ("٣", None),
        ("9" * 400, None),
    ],
)
def test_wait_is_read_as_seconds_or_date_and_capped(value: str, wait: timedelta | None) -> None:
    assert submit(429, b"", Retry_After=value).retry_after == wait
    assert submit(200, {"code": 405}, retry_after=value).retry_after == wait


def test_message_is_cut_and_made_fit_for_any_database() -> None:
    answer = submit(200, {"code": 400, "msg": " a\x00b\ud800c" + "d" * 1000})
    assert answer.message == "abc" + "d" * 494 or (answer.message is not None and len(answer.message) == 500)
    assert "\x00" not in answer.message
    answer.message.encode()


@pytest.mark.parametrize("message", [None, "", 5, [], {}, "\x00"])
def test_message_of_another_kind_is_none(message: object) -> None:
    assert submit(200, {"code": 400, "msg": message}).message is None


def test_message_does_not_repeat_the_token_of_our_callback_url() -> None:
    answer = submit(200, {"code": 400, "msg": "bad callBackUrl https://s.example/callbacks/0a1b/Tok-en_9"})
    assert answer.message == "bad callBackUrl https://s.example/callbacks/0a1b/***"
