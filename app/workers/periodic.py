"""Work that is owed once in a while, by one replica at a time: each kind is a row with the moment it is due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import structlog

from app.database.claims import Claim, claim_due, hold_claimed
from app.database.engine import Session, insert_new
from app.database.wakeups import CHORES
from app.models import Chore
from app.retention import Retention
from app.services import Services
from app.upstream.hold import RECHECK, Hold, hold_submits, release_submits
from app.upstream.types import CreditsAnswer, HoldReason, ReadVerdict
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

NO_SLOT_RETRY = timedelta(seconds=1)
PRUNE = "prune"
PRUNE_EVERY = timedelta(hours=1)


async def prepare_chores(session: Session, now: datetime) -> None:
    """Make the rows of the periodic chores; other replicas may do the same at once."""
    await insert_new(session, Chore, {"name": PRUNE, "due_at": now, "attempts": 0, "detail": {}})


def chore_loop(services: Services) -> Loop[Chore]:
    """The loop that does the chores."""
    kinds: Mapping[str, Callable[[Chore], Awaitable[None]]] = {
        RECHECK: _HoldRecheck(services).run,
        PRUNE: _Pruning(services).run,
    }

    async def claim(limit: int) -> Claimed[Chore]:
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            # What a process looked at when it was killed holds up the queue until then.
            claim = Claim(now, services.settings.submit_lease, limit)
            return Claimed(await claim_due(session, Chore, claim, Chore.name.in_(kinds)))

    async def work(chore: Chore) -> None:
        await kinds[chore.name](chore)

    return Loop("chores", services.wakeups.event(CHORES), len(kinds), claim, work)


class _HoldRecheck:
    """Looks whether the upstream takes submits again; credits that are back are seen, not guessed by a timer."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, chore: Chore) -> None:
        slot = await self._take_slot(chore)
        if slot is None:
            return
        answer = await self._services.upstream.credits()
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            await services.pacer.give_back(session, *slot, now)
            held = await hold_claimed(session, Chore, chore.name, chore.fence)
            if held is None:
                return
            reason = still_held(answer, HoldReason(held.detail["reason"]))
            log.info("hold_rechecked", reason=reason and reason.value, verdict=answer.kind.value)
            if reason is None:
                await release_submits(session)
                return
            held.fence, held.due_at = None, now + services.settings.hold_recheck
            await hold_submits(session, Hold(reason, now, held.detail["message"]), services.settings.hold_recheck)

    async def _take_slot(self, chore: Chore) -> tuple[int, str] | None:
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            free = await services.pacer.free(session, now, 1)
            if not free:
                held = await hold_claimed(session, Chore, chore.name, chore.fence)
                if held is not None:
                    held.due_at = now + NO_SLOT_RETRY
                return None
            slots = await services.pacer.take(session, free, now)
            return slots.numbers[0], slots.fence


class _Pruning:
    """Erases what was kept for long enough, a batch at a time, so that nobody waits long for its locks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._retention = Retention(services.settings.retention_days)

    async def run(self, chore: Chore) -> None:
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            held = await hold_claimed(session, Chore, chore.name, chore.fence)
            if held is not None:
                is_more = await self._retention.erase_batch(session, now)
                held.fence, held.due_at = None, now if is_more else now + PRUNE_EVERY


def still_held(answer: CreditsAnswer, reason: HoldReason) -> HoldReason | None:
    """Why submits stay held after this look, or None when they need not; an unclear look changes nothing."""
    if answer.kind is ReadVerdict.read:
        return None if answer.credits is not None and answer.credits > 0 else HoldReason.no_credits
    return answer.hold_reason or reason
