"""The held queue: submits stop for all replicas while the upstream takes none, and resume without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from app.database.engine import Session, insert_new
from app.database.wakeups import SUBMITS, notify_on_commit
from app.models import PeriodicJob
from app.upstream.types import HoldReason

RECHECK = "recheck_hold"
NO_KEY = "SOUNDPOST_UPSTREAM_API_KEY is not set, so no task can be submitted"
EXPLANATIONS: Mapping[HoldReason, str] = {
    HoldReason.no_credits: "the upstream account has no credits; buy some, submits go on by themselves",
    HoldReason.bad_key: "the upstream refuses our key; set SOUNDPOST_UPSTREAM_API_KEY to one that works and restart",
    HoldReason.blocked: "the upstream answers with a block page; check SOUNDPOST_UPSTREAM_URL and this host's address",
    HoldReason.unsendable: "no request to the upstream can be sent as it is set; correct SOUNDPOST_UPSTREAM_URL or"
    " SOUNDPOST_UPSTREAM_API_KEY and restart",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """Why no task is submitted, and since when."""

    reason: HoldReason
    since: datetime
    message: str | None


async def current_hold(session: Session) -> Hold | None:
    """The hold in force, if any. It is a periodic job that is due; a job that is not due holds nothing."""
    job = await session.scalar(select(PeriodicJob).where(PeriodicJob.name == RECHECK, PeriodicJob.due_at.isnot(None)))
    if job is None:
        return None
    detail = job.detail
    return Hold(HoldReason(detail["reason"]), datetime.fromisoformat(detail["since"]), detail["message"])


async def hold_submits(session: Session, hold: Hold, recheck_in: timedelta) -> None:
    """Stop submits for all replicas until a recheck ends it. A hold in force keeps its start and takes the reason."""
    await insert_new(session, PeriodicJob, {"name": RECHECK, "attempts": 0, "detail": {}})
    job = await session.get_one(PeriodicJob, RECHECK, with_for_update=True, populate_existing=True)
    since = job.detail["since"] if job.due_at else hold.since.isoformat()
    job.detail = {"reason": hold.reason.value, "since": since, "message": hold.message}
    job.due_at = job.due_at or hold.since + recheck_in


async def release_submits(session: Session) -> None:
    """End the hold, if any, and notify the submit workers."""
    job = await session.get(PeriodicJob, RECHECK, with_for_update=True)
    if job is not None:
        job.due_at, job.fence, job.attempts = None, None, 0
        notify_on_commit(session, SUBMITS)
