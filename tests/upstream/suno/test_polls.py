"""Polls that bring no report say why, and how long to wait."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from app.upstream.suno.reports import read_record_info
from app.upstream.types import HoldReason, PollAnswer, PollVerdict

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def poll(body: object, status: int = 200) -> PollAnswer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_record_info(status, {"Retry-After": "4"}, raw, NOW)


@pytest.mark.parametrize(
    "body",
    [
        {"code": 200, "msg": "success", "data": None},
        {"code": 200, "msg": "success"},
        {"code": 200, "data": {}},
        {"code": 422, "msg": "recordInfo is null", "data": None},
        {"code": "422", "msg": "recordInfo is null"},
    ],
)
def test_nothing_on_record_is_pending(body: object) -> None:
    assert poll(body).kind is PollVerdict.pending


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (200, {"code": 405}, PollVerdict.throttled, None),
        (200, {"code": 430}, PollVerdict.throttled, None),
        (200, {"code": 455}, PollVerdict.throttled, None),
        (429, b"", PollVerdict.throttled, None),
        (503, b"<html>", PollVerdict.throttled, None),
        (200, {"code": 401}, PollVerdict.held, HoldReason.bad_key),
        (401, b"", PollVerdict.held, HoldReason.bad_key),
        (200, {"code": 429}, PollVerdict.held, HoldReason.no_credits),
        (403, b"error code: 1010", PollVerdict.held, HoldReason.blocked),
        (200, {"code": 404}, PollVerdict.failed, None),
        (200, {"code": 400}, PollVerdict.failed, None),
        (200, {"code": 500}, PollVerdict.failed, None),
        (200, {"code": 200, "data": [1]}, PollVerdict.failed, None),
        (200, {"code": 200, "data": "soon"}, PollVerdict.pending, None),
        (200, b"<html>", PollVerdict.failed, None),
        (200, b"", PollVerdict.failed, None),
        (200, {"data": {"status": "SUCCESS"}}, PollVerdict.failed, None),
        (500, b"", PollVerdict.failed, None),
        (502, b"<html>", PollVerdict.failed, None),
        (504, b"", PollVerdict.failed, None),
    ],
)
def test_poll_that_brings_no_report_says_why(
    status: int, body: object, kind: PollVerdict, reason: HoldReason | None
) -> None:
    answer = poll(body, status)
    assert (answer.kind, answer.report, answer.hold_reason) == (kind, None, reason)
    assert answer.retry_after == timedelta(seconds=4)
