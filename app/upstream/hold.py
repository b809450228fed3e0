"""The held queue: submits stop while the upstream takes none, for all replicas or those with one key, and resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, select, update

from app.config import Settings
from app.database.engine import Session, insert_new
from app.database.wakeups import SUBMITS, notify_on_commit
from app.models import PeriodicJob
from app.upstream.types import HoldReason

RECHECK = "recheck_hold"
NO_KEY = "SOUNDPOST_UPSTREAM_API_KEY is not set, so no task can be submitted"
EXPLANATIONS: Mapping[HoldReason, str] = {
    HoldReason.no_credits: "the upstream account has no credits; buy some, submits go on by themselves",
    HoldReason.bad_key: "the upstream refuses our key; set SOUNDPOST_UPSTREAM_API_KEY to one that works, and"
    " restart or, if it is in a file, send SIGHUP",
    HoldReason.blocked: "the upstream answers with a block page; check SOUNDPOST_UPSTREAM_URL and this host's address",
    HoldReason.unsendable: "no request to the upstream can be sent as it is set; correct SOUNDPOST_UPSTREAM_URL or"
    " SOUNDPOST_UPSTREAM_API_KEY and restart",
}


def account_name(settings: Settings) -> str:
    """The upstream key and host as operators are told of them."""
    host = urlsplit(settings.upstream_url).netloc.rpartition("@")[2]
    return f"key {settings.upstream_fingerprint or 'not set'} at {host}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why no task is submitted, and since when. `key` is the fingerprint of the key that was used."""

    reason: HoldReason
    since: datetime
    message: str | None
    key: str | None = None

    @property
    def job(self) -> str:
        """The periodic job that rechecks it: a refused key holds only the replicas that have it."""
        return recheck_of(self.key) if self.reason is HoldReason.bad_key else RECHECK


def recheck_of(key: str | None) -> str:
    """The name of the job that rechecks the hold of one upstream key, by its fingerprint."""
    return f"{RECHECK}:{key}" if key else RECHECK


def is_of_a_key() -> ColumnElement[bool]:
    """Whether a periodic job rechecks the hold of one key: only replicas with that key run it."""
    return PeriodicJob.name.startswith(f"{RECHECK}:", autoescape=True)


async def current_hold(session: Session, key: str | None = None) -> Hold | None:
    """
    The hold in force for replicas with this key, or without one for any replica.

    It is a periodic job that is due; a job that is not due holds nothing.
    """
    mine = PeriodicJob.name == recheck_of(key) if key else is_of_a_key()
    held = select(PeriodicJob).where((PeriodicJob.name == RECHECK) | mine, PeriodicJob.due_at.isnot(None))
    job = await session.scalar(held.order_by(PeriodicJob.name).limit(1))
    if job is None:
        return None
    detail = job.detail
    since = datetime.fromisoformat(detail["since"])
    return Hold(HoldReason(detail["reason"]), since, detail["message"], job.name.partition(":")[2] or None)


async def other_refused_keys(session: Session, key: str) -> Sequence[str]:
    """The fingerprints of refused keys that other replicas have."""
    held = select(PeriodicJob.name).where(is_of_a_key(), PeriodicJob.name != recheck_of(key))
    names = (await session.scalars(held.where(PeriodicJob.due_at.isnot(None)).order_by(PeriodicJob.name))).all()
    return [name.partition(":")[2] for name in names]


async def hold_submits(session: Session, hold: Hold, recheck_in: timedelta) -> None:
    """Stop submits until a recheck ends it. A hold in force keeps its start and takes the reason."""
    await insert_new(session, PeriodicJob, {"name": hold.job, "attempts": 0, "detail": {}})
    job = await session.get_one(PeriodicJob, hold.job, with_for_update=True, populate_existing=True)
    since = job.detail["since"] if job.due_at else hold.since.isoformat()
    job.detail = {**job.detail, "reason": hold.reason.value, "since": since, "message": hold.message}
    job.due_at = job.due_at or hold.since + recheck_in


async def take_probe(session: Session, name: str) -> bool:
    """Whether one task may be submitted although this job holds submits, to see what comes; says so to one caller."""
    job = await session.get(PeriodicJob, name, with_for_update=True, populate_existing=True)
    if job is None or not job.detail.get("probe"):
        return False
    job.detail = {**job.detail, "probe": False}
    return True


async def release_submits(session: Session, name: str = RECHECK) -> None:
    """End the hold of this job, if any, and notify the submit workers."""
    job = await session.get(PeriodicJob, name, with_for_update=True)
    if job is not None:
        job.due_at, job.fence, job.attempts, job.detail = None, None, 0, {}
        notify_on_commit(session, SUBMITS)


async def forget_stale_holds(session: Session, before: datetime) -> None:
    """End the holds of keys that no replica has any more: nobody has rechecked them since then."""
    stale = update(PeriodicJob).where(is_of_a_key(), PeriodicJob.due_at < before)
    await session.execute(stale.values(due_at=None, fence=None).execution_options(synchronize_session=False))
