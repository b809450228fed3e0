"""Polls that bring no report say why, and how long to wait."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from app.upstream.suno.reports import read_record_info
from app.upstream.types import HoldReason, Outcome, Report, Result

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def poll(body: object, status: int = 200) -> Result[Report]:
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
    assert poll(body).outcome is Outcome.pending


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        (200, {"code": 405}, Outcome.throttled, None),
        (200, {"code": 430}, Outcome.throttled, None),
        (200, {"code": 455}, Outcome.throttled, None),
        (429, b"", Outcome.throttled, None),
        (503, b"<html>", Outcome.throttled, None),
        (200, {"code": 401}, Outcome.held, HoldReason.bad_key),
        (401, b"", Outcome.held, HoldReason.bad_key),
        (200, {"code": 429}, Outcome.held, HoldReason.no_credits),
        (403, b"error code: 1010", Outcome.failed, None),
        (200, {"code": 404}, Outcome.failed, None),
        (200, {"code": 400}, Outcome.failed, None),
        (200, {"code": 500}, Outcome.failed, None),
        (200, {"code": 200, "data": [1]}, Outcome.failed, None),
        (200, {"code": 200, "data": "soon"}, Outcome.pending, None),
        (200, b"<html>", Outcome.failed, None),
        (200, b"", Outcome.failed, None),
        (200, {"data": {"status": "SUCCESS"}}, Outcome.failed, None),
        (500, b"", Outcome.failed, None),
        (502, b"<html>", Outcome.failed, None),
        (504, b"", Outcome.failed, None),
    ],
)
def test_poll_without_a_report_gives_the_reason(
    status: int, body: object, outcome: Outcome, reason: HoldReason | None
) -> None:
    answer = poll(body, status)
    assert (answer.outcome, answer.value, answer.hold_reason) == (outcome, None, reason)
    assert answer.retry_after == timedelta(seconds=4)
