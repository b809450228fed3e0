"""What an operator is told of past calls: when submits last succeeded and failed, and the calls about one task."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import event

from app.database.engine import Session, insert_new
from app.models import PeriodicJob
from app.upstream.types import Outcome, Result

# The row never falls due.
ROW = "last:submits"
FAILURES = frozenset({Outcome.not_sent, Outcome.ambiguous, Outcome.rejected, Outcome.held})
# Seconds: the row is written at most so often by a process, unless success follows failure or the reverse.
WRITE_EVERY = 5.0
# Of the calls about one task those that came first and last are kept: polls go on for two weeks.
FIRST_CALLS, LAST_CALLS = 5, 45


class CallKind(StrEnum):
    """What a call about a task was for."""

    submit = "submit"
    poll = "poll"


def with_call(
    calls: list[dict[str, Any]] | None,
    kind: CallKind,
    result: Result[Any],
    now: datetime,
    since: datetime | None = None,
) -> list[dict[str, Any]] | None:
    """
    These calls about a task, and one whose result is here `now`; without the middle ones where they are many.

    None began before the claim of the submit, which is `since`.
    """
    if result.timing is None:
        return calls
    known = calls or []
    # On the database's clock, as all times of a task; it was read a little before this.
    began = now - timedelta(seconds=time.monotonic() - result.timing.began)
    began = began if since is None else max(began, since)
    call = {
        "kind": kind.value,
        "started_at": began.isoformat(),
        "duration_ms": round(result.timing.took.total_seconds() * 1000),
        "outcome": result.outcome.value,
        **({} if result.code is None else {"code": result.code}),
    }
    return [*known[:FIRST_CALLS], *known[FIRST_CALLS:][1 - LAST_CALLS :], call]


@dataclass(frozen=True, slots=True)
class SubmitHistory:
    """
    The times of the last success and failure, and the failure in our own words: anybody may read /readyz.

    Each is of the upstream key with the fingerprint beside it.
    """

    succeeded_at: datetime | None = None
    succeeded_with: str | None = None
    failed_at: datetime | None = None
    failed_with: str | None = None
    failure: str | None = None


class SubmitRecorder:
    """Writes the history from one process."""

    def __init__(self) -> None:
        self._was_ok: bool | None = None
        self._write_at = 0.0

    async def record(self, session: Session, result: Result[Any], now: datetime, key: str | None) -> None:
        """
        Note a result, if it tells something about the upstream. Never commits.

        `key` is the fingerprint of the upstream key that the process uses.
        """
        is_ok = result.outcome is Outcome.ok
        if not is_ok and result.outcome not in FAILURES:
            return
        if is_ok is self._was_ok and time.monotonic() < self._write_at:
            return
        self._was_ok, self._write_at = is_ok, time.monotonic() + WRITE_EVERY
        event.listen(session.sync_session, "after_rollback", self._forget, once=True)
        await insert_new(session, PeriodicJob, {"name": ROW, "attempts": 0, "detail": {}})
        row = await session.get_one(PeriodicJob, ROW, with_for_update=True, populate_existing=True)
        # A message without a code is ours; the upstream's own stays in the log.
        what = result.message if result.code is None else f"{result.outcome.value}, code {result.code}"
        if is_ok:
            row.detail = {**row.detail, "succeeded_at": now.isoformat(), "succeeded_with": key}
        else:
            row.detail = {**row.detail, "failed_at": now.isoformat(), "failed_with": key, "failure": what}

    def _forget(self, _session: object) -> None:
        """What was noted is not stored: the result is handed over again."""
        self._was_ok, self._write_at = None, 0.0


async def read_history(session: Session) -> SubmitHistory:
    """What is known of the latest submits of all replicas."""
    row = await session.get(PeriodicJob, ROW)
    detail = row.detail if row else {}
    succeeded_at, failed_at = (detail.get(name) for name in ("succeeded_at", "failed_at"))
    return SubmitHistory(
        succeeded_at and datetime.fromisoformat(succeeded_at),
        detail.get("succeeded_with"),
        failed_at and datetime.fromisoformat(failed_at),
        detail.get("failed_with"),
        detail.get("failure"),
    )
