"""The upstream's rate limit as a ring of slots that all replicas share: no window of time can exceed it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, delete, func, select, update

from app.config import Rate
from app.database.engine import Database, Session, insert_new
from app.enums import TaskStatus
from app.models import PaceSlot, Task

# Polls and submits share the rate: a task that is not submitted yet comes before one that is only polled.
SHARE_WHILE_QUEUED = 0.25
SHARE_WHEN_IDLE = 0.75
# Of the polls' own share, for tasks that were given up: an outage leaves thousands of them, for two weeks.
LATE_SHARE = 0.2
# Of the polls' share, for questions about clips while a poll is due: thousands of dead links must not delay it.
QUESTIONS_SHARE = 0.4
CREDITS_SHARE = 0.1
MIN_PAUSE = timedelta(milliseconds=100)
MAX_PAUSE = timedelta(seconds=1)
Share = Callable[[Session, datetime], Awaitable[float]]


async def poll_share(session: Session, now: datetime) -> float:
    """Fraction of the slots that polls may use: 0.75, or 0.25 while tasks are queued."""
    waiting = select(Task.id).where(Task.status == TaskStatus.queued, Task.due_at <= now).limit(1)
    return SHARE_WHEN_IDLE if await session.scalar(waiting) is None else SHARE_WHILE_QUEUED


async def questions_share(session: Session, now: datetime) -> float:
    """Fraction of the slots for fresh links and lyrics: that of polls, or a part of it while a poll is due."""
    waiting = select(Task.id).where(Task.status == TaskStatus.generating, Task.due_at <= now).limit(1)
    share = await poll_share(session, now)
    return share if await session.scalar(waiting) is None else share * QUESTIONS_SHARE


async def credits_share(_session: Session, _now: datetime) -> float:
    """A small part, for callers who only watch the account."""
    return CREDITS_SHARE


async def full_share(_session: Session, _now: datetime) -> float:
    """Fraction of the slots for calls that a caller or operator waits for: 1."""
    return 1.0


async def is_idle_since(session: Session, moment: datetime, share: float = 1.0) -> bool:
    """Whether a slot of this share could have been reserved ever since then: what waits does not wait for the pace."""
    ring = select(func.max(PaceSlot.slot) + 1).scalar_subquery()
    last = await session.scalar(select(PaceSlot.free_at).where(PaceSlot.slot == PAUSE_SLOT))
    slot = select(PaceSlot.slot).where(PaceSlot.slot >= 0, PaceSlot.free_at <= moment)
    # Slot 0 belongs to every share, however small.
    shared = (PaceSlot.slot == 0) | (PaceSlot.slot + 1 <= ring * share)
    return (last is None or last <= moment) and await session.scalar(slot.where(shared).limit(1)) is not None


async def slots_in_use(session: Session, now: datetime) -> tuple[int, int]:
    """How many slots of the ring cannot be reserved now, and how many there are."""
    is_paused = select(PaceSlot.slot).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at > now).exists()
    used = func.count().filter(is_paused | (PaceSlot.free_at > now))
    in_use, slots = (await session.execute(select(used, func.count()).where(PaceSlot.slot >= 0))).one()
    return in_use, slots


# Not a place in the ring: the row whose `free_at` says until when no slot may be reserved.
PAUSE_SLOT = -1
MIN_WAIT = timedelta(milliseconds=50)
NEVER_USED = timedelta(days=1)
_RELEASE = (
    update(PaceSlot)
    .where(PaceSlot.slot == bindparam("number"), PaceSlot.fence == bindparam("reserved_by"))
    .values(fence=None)
)
# The pause where the upstream sends no Retry-After: a throttled submit is retried within 15 seconds.
MAX_DEFAULT_PAUSE = timedelta(seconds=12)


@dataclass(frozen=True, slots=True)
class Slot:
    """A reserved place in the ring; `fence` proves the reservation."""

    number: int
    fence: str


class Pacer:
    """
    Lets at most `rate.requests` requests out in any window of `rate.period`.

    A slot is reserved from before its request is sent until a whole period after the
    response, so that the request's arrival, whenever it was in between, shares no
    window with that of the slot's next request. The slots of a process that dies stay
    reserved for `hold` longer than a period: the rate holds without any clean-up.
    """

    def __init__(self, rate: Rate, hold: timedelta) -> None:
        self._rate = rate
        self._hold = hold

    async def prepare(self, session: Session, now: datetime) -> None:
        """Insert the rows of the slots that do not exist; replicas may do so at the same time."""
        numbers = (PAUSE_SLOT, *range(self._rate.requests))
        # New slots were never used: they count as free for long.
        free_at = now - NEVER_USED
        await insert_new(session, PaceSlot, *({"slot": number, "free_at": free_at} for number in numbers))
        await session.execute(delete(PaceSlot).where(PaceSlot.slot >= self._rate.requests))

    async def lock_free(self, session: Session, now: datetime, limit: int, share: float = 1.0) -> Sequence[int]:
        """Lock up to `limit` free slots of the ring's first `share` until the transaction ends."""
        paused = select(PaceSlot.slot).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at > now).exists()
        free = (
            select(PaceSlot.slot)
            .where(PaceSlot.free_at <= now, self._is_in(share), ~paused)
            # The slots outside a smaller share first, so that the others stay free for it.
            .order_by(PaceSlot.slot.desc())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return (await session.scalars(free)).all()

    async def reserve(self, session: Session, numbers: Sequence[int], now: datetime) -> Sequence[Slot]:
        """Reserve slots that `lock_free` locked in this transaction."""
        if not numbers:
            return []
        fence = uuid4().hex
        until = now + self._rate.period + self._hold
        await session.execute(update(PaceSlot).where(PaceSlot.slot.in_(numbers)).values(free_at=until, fence=fence))
        return [Slot(number, fence) for number in numbers]

    async def wait_for_slot(self, database: Database, at_most: timedelta, share: Share) -> Slot | None:
        """Reserve one slot as soon as one is free; None if none is within `at_most`. Commits."""
        waited = timedelta()
        while waited < at_most:
            async with database.transaction() as (session, now):
                part = await share(session, now)
                free = await self.lock_free(session, now, 1, part)
                if free:
                    return (await self.reserve(session, free, now))[0]
                wait = await self.next_free_in(session, now, part)
            pause = min(max(wait, MIN_PAUSE), MAX_PAUSE)
            await asyncio.sleep(pause.total_seconds())
            waited += pause
        return None

    async def release(self, session: Session, slots: Sequence[Slot], now: datetime) -> None:
        """Free slots a period from now: their responses are here, or the calls were given up."""
        if not slots:
            return
        connection = await session.connection()
        reserved = [{"number": slot.number, "reserved_by": slot.fence} for slot in slots]
        await connection.execute(_RELEASE.values(free_at=now + self._rate.period), reserved)

    async def pause(self, session: Session, now: datetime, retry_after: timedelta | None) -> None:
        """Let no replica reserve a slot for `retry_after`, or for a period where the upstream did not say."""
        until = now + (retry_after or min(self._rate.period, MAX_DEFAULT_PAUSE))
        pause = update(PaceSlot).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at < until)
        await session.execute(pause.values(free_at=until))

    async def next_free_in(self, session: Session, now: datetime, share: float = 1.0) -> timedelta:
        """The time until a slot is free, at least MIN_WAIT: one that looks free may be locked elsewhere."""
        first = select(func.min(PaceSlot.free_at)).where(self._is_in(share))
        pause = select(PaceSlot.free_at).where(PaceSlot.slot == PAUSE_SLOT)
        both = select(first.scalar_subquery(), pause.scalar_subquery())
        moments: Sequence[datetime | None] = (await session.execute(both)).one()
        return max([MIN_WAIT, *(moment - now for moment in moments if moment is not None)])

    def part(self, share: float) -> range:
        """The numbers of the slots that a share of the ring consists of, at least one."""
        return range(max(1, int(self._rate.requests * share)))

    def _is_in(self, share: float) -> ColumnElement[bool]:
        part = self.part(share)
        return PaceSlot.slot.between(part[0], part[-1])
