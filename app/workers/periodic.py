"""Work that is owed once in a while, by one replica at a time: each kind is a row with the moment it is due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

import structlog

from app.database.claims import Claim, claim_due, lock_claimed
from app.database.engine import Session, insert_new
from app.database.wakeups import PERIODIC_JOBS
from app.models import PeriodicJob
from app.retention import Retention
from app.services import Services
from app.upstream.hold import RECHECK, Hold, hold_submits, release_submits
from app.upstream.types import CreditsAnswer, HoldReason, ReadVerdict
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

NO_SLOT_RETRY = timedelta(seconds=1)
PRUNE = "prune"
PRUNE_EVERY = timedelta(hours=1)


async def prepare_jobs(session: Session, now: datetime) -> None:
    """Make the rows of the periodic jobs; other replicas may do the same at once."""
    await insert_new(session, PeriodicJob, {"name": PRUNE, "due_at": now, "attempts": 0, "detail": {}})


def periodic_loop(services: Services) -> Loop[PeriodicJob]:
    """The loop that runs periodic jobs."""
    kinds: Mapping[str, Callable[[PeriodicJob], Awaitable[None]]] = {
        RECHECK: _HoldRecheck(services).run,
        PRUNE: _Pruning(services).run,
    }

    async def claim(limit: int) -> Claimed[PeriodicJob]:
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            # What a process looked at when it was killed holds up the queue until then.
            claim = Claim(now, services.settings.submit_lease, limit)
            return Claimed(await claim_due(session, PeriodicJob, claim, PeriodicJob.name.in_(kinds)))

    async def work(job: PeriodicJob) -> None:
        await kinds[job.name](job)

    return Loop("periodic", services.wakeups.event(PERIODIC_JOBS), len(kinds), claim, work)


class _HoldRecheck:
    """Looks whether the upstream takes submits again; credits that are back are seen, not guessed by a timer."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, job: PeriodicJob) -> None:
        slot = await self._take_slot(job)
        if slot is None:
            return
        answer = await self._services.upstream.credits()
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            await services.pacer.release(session, *slot, now)
            held = await lock_claimed(session, PeriodicJob, job.name, job.fence)
            if held is None:
                return
            reason = still_held(answer, HoldReason(held.detail["reason"]))
            log.info("hold_rechecked", reason=reason and reason.value, verdict=answer.kind.value)
            if reason is None:
                await release_submits(session)
                return
            held.fence, held.due_at = None, now + services.settings.hold_recheck
            await hold_submits(session, Hold(reason, now, held.detail["message"]), services.settings.hold_recheck)

    async def _take_slot(self, job: PeriodicJob) -> tuple[int, str] | None:
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            free = await services.pacer.lock_free(session, now, 1)
            if not free:
                held = await lock_claimed(session, PeriodicJob, job.name, job.fence)
                if held is not None:
                    held.due_at = now + NO_SLOT_RETRY
                return None
            slots = await services.pacer.reserve(session, free, now)
            return slots.numbers[0], slots.fence


class _Pruning:
    """Erases what was kept for long enough, a batch at a time, so that nobody waits long for its locks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._retention = Retention(services.settings.retention_days)

    async def run(self, job: PeriodicJob) -> None:
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            held = await lock_claimed(session, PeriodicJob, job.name, job.fence)
            if held is not None:
                is_more = await self._retention.erase_batch(session, now)
                held.fence, held.due_at = None, now if is_more else now + PRUNE_EVERY


def still_held(answer: CreditsAnswer, reason: HoldReason) -> HoldReason | None:
    """Why submits stay held after this look, or None when they need not; an unclear look changes nothing."""
    if answer.kind is ReadVerdict.read:
        return None if answer.credits is not None and answer.credits > 0 else HoldReason.no_credits
    return answer.hold_reason or reason
