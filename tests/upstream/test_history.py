"""The history of calls tells an operator what was stored, and only that."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from app.database.engine import Database
from app.upstream.history import FIRST_CALLS, LAST_CALLS, CallKind, SubmitRecorder, read_history, with_call
from app.upstream.types import Outcome, Result, Timing
from tests.support.clock import MORNING

ACCEPTED = Result(Outcome.ok, "up-1")


async def test_result_whose_transaction_failed_is_noted_by_the_next_one(database: Database) -> None:
    recorder = SubmitRecorder()

    async with database.writes() as session:
        await recorder.record(session, ACCEPTED, MORNING, "key")
        await session.rollback()
    async with database.writes.begin() as session:
        await recorder.record(session, ACCEPTED, MORNING, "key")

    async with database.reads() as session:
        assert (await read_history(session)).succeeded_at == MORNING


def test_call_began_so_long_before_its_result_was_stored_as_it_did_by_the_clock_of_the_process() -> None:
    timing = Timing(time.monotonic() - 3, timedelta(seconds=2))

    [call] = with_call(None, CallKind.submit, Result(Outcome.rejected, code=500, timing=timing), MORNING) or []

    began = datetime.fromisoformat(call.pop("started_at"))
    assert timedelta(seconds=3) <= MORNING - began < timedelta(seconds=4)
    assert call == {"kind": "submit", "duration_ms": 2000, "outcome": "rejected", "code": 500}


def test_first_and_last_calls_of_a_task_are_kept() -> None:
    calls: list[dict[str, Any]] | None = None
    for number in range(200):
        result: Result[Any] = Result(Outcome.pending, code=number, timing=Timing(time.monotonic(), timedelta()))
        calls = with_call(calls, CallKind.poll, result, MORNING)

    assert [call["code"] for call in calls or ()] == [*range(FIRST_CALLS), *range(200 - LAST_CALLS, 200)]


def test_call_does_not_begin_before_its_claim_where_the_clock_was_read_early() -> None:
    result: Result[str] = Result(Outcome.ok, timing=Timing(time.monotonic() - 5, timedelta(seconds=4)))

    [call] = with_call(None, CallKind.submit, result, MORNING, since=MORNING - timedelta(seconds=3)) or []

    assert call["started_at"] == (MORNING - timedelta(seconds=3)).isoformat()


def test_call_that_was_not_made_is_not_kept() -> None:
    assert with_call(None, CallKind.submit, Result(Outcome.not_sent), MORNING) is None
