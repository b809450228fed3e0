"""Letting in held tasks, once the budgets of their keys have room for them."""

from __future__ import annotations

from app.database.claims import lock_claimed
from app.database.wakeups import SUBMITS, notify_on_commit
from app.models import PeriodicJob
from app.services import Services
from app.tasks.queue.held import keys_that_hold, next_reset

# Tasks that one commit lets in.
AT_ONCE = 500


async def let_in_held(services: Services, job: PeriodicJob) -> None:
    """Let in what there is room for, key by key; the job is due again when the next window begins."""
    async with services.database.reads() as session:
        key_ids = await keys_that_hold(session)
    for key_id in key_ids:
        while await _let_in(services, key_id) == AT_ONCE:
            pass
    async with services.database.transaction() as (session, now):
        # Where more is held since, or there is more room, it is no longer ours: it stays due.
        claimed = await lock_claimed(session, PeriodicJob, job.name, job.fence)
        if claimed is not None:
            claimed.fence, claimed.due_at = None, await next_reset(session, now)


async def _let_in(services: Services, api_key_id: str) -> int:
    async with services.database.transaction() as (session, now):
        count = await services.lifecycle.let_in(session, api_key_id, now, AT_ONCE)
        if count:
            notify_on_commit(session, SUBMITS)
    return count
