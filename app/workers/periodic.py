"""Periodic jobs: each kind is a row with its due time, so that one replica at a time runs it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

import structlog
from sqlalchemy import String, bindparam

from app.budgets.ledger import LET_IN
from app.budgets.repository import total_charged
from app.budgets.usage import add_up_spent
from app.database.claims import Claim, Claims, is_due, lock_claimed
from app.database.engine import Session, insert_new, on_commit
from app.database.wakeups import PERIODIC_JOBS, SUBMITS, notify_on_commit
from app.errors import UpstreamUnavailable
from app.models import PeriodicJob
from app.retention import Retention
from app.services import Services
from app.upstream.credits import note_credits
from app.upstream.hold import RECHECK, Hold, forget_stale_holds, hold_submits, recheck_of, release_submits
from app.upstream.pacing import full_share
from app.upstream.types import HoldReason, Outcome, Result
from app.workers.let_in import let_in_held
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

# Looks at the credits without an answer, as at a mirror that does not have them. Then an order shows whether the reason
# of the hold still holds.
MAX_UNCLEAR_LOOKS = 3
NO_SLOT_RETRY = timedelta(seconds=1)
PRUNE = "prune"
# It goes on at once while there is more; what is added up later is counted row by row meanwhile.
PRUNE_EVERY = timedelta(minutes=5)
# For who watches the balance: nobody else may ask for it for days.
CREDITS, CREDITS_EVERY = "look_at_credits", timedelta(minutes=5)
# Rows that are added up in one commit.
USAGE_BATCH = 500
STALE_HOLD = timedelta(hours=1)
Job = Callable[[PeriodicJob], Awaitable[None]]


async def prepare_jobs(session: Session, now: datetime) -> None:
    """Insert the rows of the periodic jobs; replicas may do so at the same time."""
    due = {PRUNE: now, CREDITS: now + CREDITS_EVERY}
    rows = [{"name": name, "due_at": due_at, "attempts": 0, "detail": {}} for name, due_at in due.items()]
    await insert_new(session, PeriodicJob, *rows)


def periodic_loop(services: Services) -> Loop[PeriodicJob]:
    """The loop that runs periodic jobs."""
    recheck = partial(_recheck_hold, services)
    kinds: Mapping[str, Job] = {
        RECHECK: recheck,
        PRUNE: partial(_prune, services),
        CREDITS: partial(_look_at_credits, services),
        LET_IN: partial(let_in_held, services),
    }
    # The key may change while the process runs.
    own_recheck = bindparam(None, callable_=lambda: recheck_of(services.gateway.key), type_=String())
    is_ours = PeriodicJob.name.in_(kinds) | (PeriodicJob.name == own_recheck)
    claims = Claims(PeriodicJob, is_ours)

    async def claim(limit: int) -> Claimed[PeriodicJob]:
        async with services.database.transaction() as (session, now):
            # A recheck of a process that was killed holds the queue until its lease ends.
            claim = Claim(now, services.settings.submit_lease, limit)
            return Claimed(await claims.claim(session, claim))

    async def work(job: PeriodicJob) -> None:
        await kinds.get(job.name, recheck)(job)

    return Loop(
        "periodic", services.wakeups.event(PERIODIC_JOBS), len(kinds) + 1, claim, work, is_due(PeriodicJob, is_ours)
    )


async def _recheck_hold(services: Services, job: PeriodicJob) -> None:
    """Ask for the credits whether the upstream takes submits again: they are looked up, not guessed by a timer."""
    began = time.monotonic()
    result = await services.gateway.call(lambda upstream: upstream.credits(), full_share)
    duration_ms = round((time.monotonic() - began) * 1000)
    async with services.database.transaction() as (session, now):
        claimed = await lock_claimed(session, PeriodicJob, job.name, job.fence)
        if claimed is None:
            on_commit(session, services.metrics.leases_lost["periodic"].inc)
            return
        if result is None:
            claimed.fence, claimed.due_at = None, now + NO_SLOT_RETRY
            return
        if result.value is not None:
            await note_credits(session, result.value, await total_charged(session), now)
        reason = reason_to_hold(result, HoldReason(claimed.detail["reason"]))
        write = log.info if reason is None else log.warning
        line = {"reason": reason and reason.value, "outcome": result.outcome.value, "upstream_code": result.code}
        on_commit(session, partial(write, "hold_rechecked", **line, duration_ms=duration_ms))
        hold = Hold(reason, now, claimed.detail["message"], services.gateway.key) if reason else None
        if hold is None or hold.job != job.name:
            await release_submits(session, job.name)
        else:
            claimed.fence, claimed.due_at = None, now + services.settings.hold_recheck
        if hold is not None:
            await hold_submits(session, hold, services.settings.hold_recheck)
        if hold is not None and hold.job == job.name:
            _allow_probe(session, claimed, result)


def _allow_probe(session: Session, job: PeriodicJob, result: Result[Decimal]) -> None:
    """Let one task be submitted while the rechecks of a hold remain without an answer: what comes of it tells."""
    unclear = job.detail.get("unclear", 0) + 1 if result.outcome is Outcome.failed else 0
    is_probe_due = unclear >= MAX_UNCLEAR_LOOKS
    job.detail = {**job.detail, "unclear": unclear, "probe": is_probe_due}
    if is_probe_due:
        notify_on_commit(session, SUBMITS)


async def _prune(services: Services, job: PeriodicJob) -> None:
    """Erase one batch of what is past its retention, and add one up for usage, so that their locks are short."""
    retention = Retention(services.settings.retention_days, services.settings.audit_days)
    async with services.database.transaction() as (session, now):
        claimed = await lock_claimed(session, PeriodicJob, job.name, job.fence)
        if claimed is None:
            on_commit(session, services.metrics.leases_lost["periodic"].inc)
        else:
            await forget_stale_holds(session, now - STALE_HOLD)
            added_up = await services.lifecycle.add_up_usage(session, now, USAGE_BATCH)
            added_up = max(added_up, await add_up_spent(session, USAGE_BATCH))
            is_more = await retention.erase_batch(session, now) or added_up == USAGE_BATCH
            claimed.fence, claimed.due_at = None, now if is_more else now + PRUNE_EVERY
            if is_more:
                # A backlog does not wait for the next look of the loop after each batch.
                notify_on_commit(session, PERIODIC_JOBS)


async def _look_at_credits(services: Services, job: PeriodicJob) -> None:
    """Have the balance known that metrics and pages show, unless somebody has just asked for it."""
    with suppress(UpstreamUnavailable):
        await services.credits.credits()
    async with services.database.transaction() as (session, now):
        claimed = await lock_claimed(session, PeriodicJob, job.name, job.fence)
        if claimed is None:
            on_commit(session, services.metrics.leases_lost["periodic"].inc)
        else:
            claimed.fence, claimed.due_at = None, now + CREDITS_EVERY


def reason_to_hold(result: Result[Decimal], reason: HoldReason) -> HoldReason | None:
    """Why submits stay held after this look at the credits, or None to release them."""
    if result.value is not None:
        return None if result.value > 0 else HoldReason.no_credits
    return result.hold_reason or reason
