"""What the page of a task reads: a bounded number of rows of each kind, however many the task has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from sqlalchemy import func, select

from app.auth.callers import Caller
from app.config import Settings
from app.database.engine import Database, Session
from app.enums import CallbackOutcome, TaskStatus
from app.models import ApiKey, Callback, Delivery, DeliveryAttempt, Event, PaceSlot, Task
from app.tasks.queue.positions import QueuePositions
from app.tasks.repository import find_task
from app.upstream.hold import Hold, current_hold
from app.upstream.pacing import PAUSE_SLOT
from app.webhooks import repository as webhooks

# Of each kind the newest are shown, of a delivery its latest attempts. Up to MAX_COUNTED rows are counted.
MAX_SHOWN, MAX_EVENTS, MAX_ATTEMPTS, MAX_COUNTED = 50, 200, 5, 1000
# Of all shown callbacks together.
MAX_BODIES = 2**18


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """A callback with its body, which is None where the bodies would be too large for a page."""

    id: str
    received_at: datetime
    outcome: CallbackOutcome
    size: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Pace:
    """The upstream's rate: slots that are free now, when the next one is, and until when nothing at all is sent."""

    free: int
    next_free_at: datetime | None = None
    paused_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class TaskRows:
    """
    A task with what belongs to it, oldest first, as it was at `now`.

    `position` is that in the queue, `pace` and `hold` those of the upstream; None where the task is not queued.
    """

    now: datetime
    task: Task
    key_name: str
    events: Sequence[Event]
    callbacks: Sequence[StoredCallback]
    deliveries: Sequence[Delivery]
    attempts: Mapping[str, Sequence[DeliveryAttempt]]
    counts: Mapping[str, int]
    position: int | None = None
    pace: Pace | None = None
    hold: Hold | None = None


async def read_task_rows(database: Database, caller: Caller, task_id: str, settings: Settings) -> TaskRows:
    """Read a task that this caller may read. Raises NotFound."""
    async with database.reads() as session:
        now = await database.now(session)
        task = caller.require_readable(await find_task(session, task_id))
        key_name = await session.scalar(select(ApiKey.name).where(ApiKey.id == task.api_key_id)) or ""
        deliveries = await webhooks.list_deliveries(session, [Delivery.task_id == task.id], None, MAX_SHOWN)
        await webhooks.show_current_urls(session, deliveries)
        is_queued = task.status is TaskStatus.queued
        return TaskRows(
            now,
            task,
            key_name,
            await _latest_events(session, task.id),
            await _latest_callbacks(session, task.id),
            deliveries[::-1],
            await webhooks.latest_attempts(session, [delivery.id for delivery in deliveries], MAX_ATTEMPTS),
            {kind.__tablename__: await _count(session, kind, task.id) for kind in (Event, Callback, Delivery)},
            (await QueuePositions(settings).read(session, [task])).get(task.id),
            await _read_pace(session, now) if is_queued else None,
            await current_hold(session, settings.upstream_fingerprint) if is_queued else None,
        )


async def _latest_events(session: Session, task_id: str) -> Sequence[Event]:
    latest = select(Event).where(Event.task_id == task_id).order_by(Event.version.desc()).limit(MAX_EVENTS)
    return (await session.scalars(latest)).all()[::-1]


async def _latest_callbacks(session: Session, task_id: str) -> Sequence[StoredCallback]:
    latest = select(Callback.id, Callback.received_at, Callback.outcome, func.length(Callback.body))
    newest_first = Callback.received_at.desc(), Callback.id.desc()
    found = (
        await session.execute(latest.where(Callback.task_id == task_id).order_by(*newest_first).limit(MAX_SHOWN))
    ).all()
    sizes = accumulate(size for *_, size in found)
    ids = [row[0] for row, total in zip(found, sizes, strict=True) if total <= MAX_BODIES]
    bodies = dict((await session.execute(select(Callback.id, Callback.body).where(Callback.id.in_(ids)))).all())
    return [StoredCallback(id_, at, outcome, size, bodies.get(id_)) for id_, at, outcome, size in found[::-1]]


async def _count(session: Session, kind: type[Event | Callback | Delivery], task_id: str) -> int:
    some = select(kind.id).where(kind.task_id == task_id).limit(MAX_COUNTED)
    return await session.scalar(select(func.count()).select_from(some.subquery())) or 0


async def _read_pace(session: Session, now: datetime) -> Pace:
    # There are as many slots as requests in a period: a few, or a thousand.
    slots = (await session.execute(select(PaceSlot.slot, PaceSlot.free_at))).all()
    ring = [free_at for slot, free_at in slots if slot != PAUSE_SLOT]
    pause = next((free_at for slot, free_at in slots if slot == PAUSE_SLOT and free_at > now), None)
    return Pace(sum(free_at <= now for free_at in ring), min(ring, default=None), pause)
