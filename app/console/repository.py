"""What the pages show of the queue and of the last hour: bounded reads, whatever the tables have grown to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Integer, cast, extract, func, select

from app.config import Settings
from app.database.engine import Session
from app.enums import TaskStatus
from app.models import ApiKey, PaceSlot, Task
from app.tasks.transitions import FINAL
from app.upstream.credits import Credits, known_credits
from app.upstream.hold import EXPLANATIONS, Hold, current_hold
from app.upstream.pacing import PAUSE_SLOT

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
# Of an hour with more tasks than these, the latest are counted.
MAX_COUNTED = 10_000
WAITING = tuple(sorted(set(TaskStatus) - FINAL))


@dataclass(frozen=True, slots=True)
class Overview:
    """How the queue stands."""

    hold: Hold | None
    credits: Credits | None
    slots_used: int
    slots: int
    paused_until: datetime | None
    oldest_due: tuple[TaskStatus, datetime] | None

    @property
    def hold_advice(self) -> str:
        """Why submits are held, and what to do."""
        return EXPLANATIONS[self.hold.reason] if self.hold else ""


@dataclass(frozen=True, slots=True)
class LastHour:
    """The tasks that were created in each minute of the last hour, by the state that they are in now."""

    minutes: Mapping[datetime, Mapping[TaskStatus, int]]
    is_complete: bool

    @property
    def totals(self) -> Mapping[TaskStatus, int]:
        """The same, of the whole hour."""
        return {status: sum(counts.get(status, 0) for counts in self.minutes.values()) for status in TaskStatus}


async def read_overview(session: Session, settings: Settings, now: datetime) -> Overview:
    """How the queue stands. The upstream is not asked."""
    is_used = PaceSlot.slot != PAUSE_SLOT, PaceSlot.free_at > now
    used = await session.scalar(select(func.count()).where(*is_used)) or 0
    paused_until = await session.scalar(
        select(PaceSlot.free_at).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at > now)
    )
    oldest = [(await _oldest_due(session, status, now), status) for status in WAITING]
    due = min(((at, status) for at, status in oldest if at is not None), default=None)
    return Overview(
        hold=await current_hold(session, settings.upstream_fingerprint),
        credits=await known_credits(session),
        slots_used=used,
        slots=settings.upstream_rate.requests,
        paused_until=paused_until,
        oldest_due=(due[1], due[0]) if due else None,
    )


async def _oldest_due(session: Session, status: TaskStatus, now: datetime) -> datetime | None:
    due = select(Task.due_at).where(Task.status == status, Task.due_at <= now)
    return await session.scalar(due.order_by(Task.due_at).limit(1))


async def read_last_hour(session: Session, api_key_id: str | None, now: datetime) -> LastHour:
    """The last hour of one caller, or of all."""
    since = (now - HOUR).replace(second=0, microsecond=0) + MINUTE
    latest = select(Task.created_at, Task.status).where(Task.created_at >= since)
    if api_key_id is not None:
        latest = latest.where(Task.api_key_id == api_key_id)
    counted = latest.order_by(Task.created_at.desc(), Task.id.desc()).limit(MAX_COUNTED).subquery()
    second = extract("epoch", counted.c.created_at)
    minute = cast(second - second % 60, Integer)
    rows = await session.execute(select(minute, counted.c.status, func.count()).group_by(minute, counted.c.status))
    minutes: dict[datetime, dict[TaskStatus, int]] = {since + number * MINUTE: {} for number in range(60)}
    for began, status, count in rows:
        minutes.setdefault(datetime.fromtimestamp(began, UTC), {})[status] = count
    return LastHour(minutes, sum(sum(counts.values()) for counts in minutes.values()) < MAX_COUNTED)


async def names_of_owners(session: Session, task_ids: Collection[str]) -> Mapping[str, str]:
    """The names of the keys that created these tasks, by the tasks' ids."""
    owners = select(Task.id, ApiKey.name).join(ApiKey, ApiKey.id == Task.api_key_id).where(Task.id.in_(task_ids))
    return dict((await session.execute(owners)).all())


async def names_of_keys(session: Session, key_ids: Collection[str]) -> Mapping[str, str]:
    """The names of these keys, by their ids."""
    names = select(ApiKey.id, ApiKey.name).where(ApiKey.id.in_(key_ids))
    return dict((await session.execute(names)).all())
