"""The upstream's pace: a ring of slots, shared by all replicas, that no window of time can exceed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import delete, func, select, update

from app.config import Rate
from app.database.engine import Database, Session, insert_new
from app.enums import TaskStatus
from app.models import PaceSlot, Task

# Questions and submits share the rate; what is not ordered yet comes before what is only asked about.
SHARE_WHILE_QUEUED = 0.25
SHARE_WHEN_IDLE = 0.75
MIN_PAUSE = timedelta(milliseconds=100)
MAX_PAUSE = timedelta(seconds=1)


async def poll_share(session: Session, now: datetime) -> float:
    """The part of the ring that questions may use: most of it, unless orders wait."""
    waiting = select(Task.id).where(Task.status == TaskStatus.queued, Task.due_at <= now).limit(1)
    return SHARE_WHEN_IDLE if await session.scalar(waiting) is None else SHARE_WHILE_QUEUED


async def full_share(_session: Session, _now: datetime) -> float:
    """All of the ring, for what somebody waits for."""
    return 1.0


# Not a place in the ring: the row that says until when none of its places may be taken.
PAUSE_SLOT = -1
MIN_WAIT = timedelta(milliseconds=50)
# Where the upstream does not say for how long: what it refused is sent again within 15 seconds.
MAX_DEFAULT_PAUSE = timedelta(seconds=12)


@dataclass(frozen=True, slots=True)
class Slots:
    """Places in the ring that are ours until they are given back."""

    numbers: Sequence[int]
    fence: str


class Pacer:
    """
    Lets at most `rate.requests` requests out in any window of `rate.period`.

    A slot is kept from before its request leaves until a whole period after the
    answer, so that the request's arrival, whenever it was in between, shares no
    window with the slot's next one. A process that dies keeps its slots for
    `hold` longer than a period; the pace stays right without it.
    """

    def __init__(self, rate: Rate, hold: timedelta) -> None:
        self._rate = rate
        self._hold = hold

    async def prepare(self, session: Session, now: datetime) -> None:
        """Make the ring as long as the rate says; other replicas may do the same at once."""
        numbers = (PAUSE_SLOT, *range(self._rate.requests))
        await insert_new(session, PaceSlot, *({"slot": number, "free_at": now} for number in numbers))
        await session.execute(delete(PaceSlot).where(PaceSlot.slot >= self._rate.requests))

    async def lock_free(self, session: Session, now: datetime, limit: int, share: float = 1.0) -> Sequence[int]:
        """Lock up to `limit` free slots of the ring's first `share` until the transaction ends; none is taken yet."""
        paused = select(PaceSlot.slot).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at > now).exists()
        free = (
            select(PaceSlot.slot)
            .where(PaceSlot.free_at <= now, PaceSlot.slot.in_(self._shared(share)), ~paused)
            # The slots that only some may use are left for them as long as others are free.
            .order_by(PaceSlot.slot.desc())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return (await session.scalars(free)).all()

    async def reserve(self, session: Session, numbers: Sequence[int], now: datetime) -> Slots:
        """Take slots that `free` locked in this transaction."""
        slots = Slots(numbers, uuid4().hex)
        until = now + self._rate.period + self._hold
        await session.execute(
            update(PaceSlot).where(PaceSlot.slot.in_(numbers)).values(free_at=until, fence=slots.fence)
        )
        return slots

    async def wait_for_slot(
        self, database: Database, patience: timedelta, share: Callable[[Session, datetime], Awaitable[float]]
    ) -> tuple[int, str] | None:
        """Take one slot as soon as one is free, with its fence; None if that takes too long."""
        waited = timedelta()
        while waited < patience:
            async with database.writes.begin() as session:
                now = await database.now(session)
                part = await share(session, now)
                free = await self.lock_free(session, now, 1, part)
                if free:
                    return free[0], (await self.reserve(session, free, now)).fence
                wait = await self.next_free_in(session, now, part)
            pause = min(max(wait, MIN_PAUSE), MAX_PAUSE)
            await asyncio.sleep(pause.total_seconds())
            waited += pause
        return None

    async def release(self, session: Session, slot: int, fence: str, now: datetime) -> None:
        """The answer is here: the slot is free a period from now."""
        free_at = now + self._rate.period
        mine = update(PaceSlot).where(PaceSlot.slot == slot, PaceSlot.fence == fence)
        await session.execute(mine.values(free_at=free_at, fence=None))

    async def pause(self, session: Session, now: datetime, retry_after: timedelta | None) -> None:
        """The upstream wants us slower: no replica sends anything for so long, whatever is in flight now."""
        until = now + (retry_after or min(self._rate.period, MAX_DEFAULT_PAUSE))
        pause = update(PaceSlot).where(PaceSlot.slot == PAUSE_SLOT, PaceSlot.free_at < until)
        await session.execute(pause.values(free_at=until))

    async def next_free_in(self, session: Session, now: datetime, share: float = 1.0) -> timedelta:
        """How long until a slot falls free; never nothing, since one that is free now may be in another's hands."""
        first = select(func.min(PaceSlot.free_at)).where(PaceSlot.slot.in_(self._shared(share)))
        pause = select(PaceSlot.free_at).where(PaceSlot.slot == PAUSE_SLOT)
        moments = [await session.scalar(first), await session.scalar(pause)]
        return max([MIN_WAIT, *(moment - now for moment in moments if moment is not None)])

    def _shared(self, share: float) -> range:
        return range(max(1, int(self._rate.requests * share)))
