"""Polling tasks where callbacks do not come, and expiring tasks at their deadlines."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from app.database.claims import Claim, is_due, lock_claimed
from app.database.engine import on_commit
from app.database.failures import TRANSIENT
from app.database.wakeups import POLLS
from app.enums import ResolvedBy, TaskStatus
from app.models import Task
from app.observability.redaction import hide_in_log
from app.services import Services
from app.tasks import locking
from app.upstream.history import CallKind
from app.upstream.pacing import LATE_SHARE, Slot, poll_share
from app.upstream.types import Outcome
from app.workers.attempts import INTERRUPTED, attempt
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

MAX_EXPIRED_AT_ONCE = 100
IS_DUE = is_due(Task, Task.status.in_(set(TaskStatus) - {TaskStatus.queued}))


@dataclass(frozen=True, slots=True)
class Poll:
    """A claimed task with its slot."""

    task: Task
    slot: Slot


def poll_loop(services: Services) -> Loop[Poll]:
    """The loop that polls."""
    worker = _PollWorker(services)
    concurrency = services.settings.upstream_rate.requests
    return Loop("poll", services.wakeups.event(POLLS), concurrency, worker.claim, worker.work, IS_DUE)


class _PollWorker:
    def __init__(self, services: Services) -> None:
        self._services, self._gateway = services, services.gateway

    async def claim(self, limit: int) -> Claimed[Poll]:
        """
        Expire due tasks that cannot be polled, then lock free slots and claim as many tasks.

        Tasks that were given up get the slots of a part of the ring that is polled last, so
        that no number of them delays the polls of others.
        """
        services, pacer = self._services, self._gateway.pacer
        await self._expire_unpollable()
        async with services.database.transaction() as (session, now):
            share = await poll_share(session, now)
            free = await pacer.lock_free(session, now, services.settings.upstream_rate.requests, share)
            claim = Claim(now, services.settings.submit_lease, min(limit, len(free)))
            late = len(set(free) & set(pacer.part(share * LATE_SHARE)))
            living, ended = await services.lifecycle.claim_polls(session, claim, late)
            tasks = [*living, *ended]
            # The free slots come in falling order, and that part of the ring is its beginning.
            numbers = [*free[: len(living)], *free[len(free) - len(ended) :]]
            slots = await pacer.reserve(session, numbers, now)
            wait = await pacer.next_free_in(session, now, share)
        polls = [Poll(task, slot) for task, slot in zip(tasks, slots, strict=True)]
        return Claimed(polls, None if len(tasks) < claim.limit else wait)

    async def work(self, poll: Poll) -> None:
        """Poll one task and settle the result."""
        services, upstream_task_id = self._services, poll.task.upstream_task_id or ""
        hide_in_log(poll.task.prompt)
        ids = {"task_id": poll.task.id, "upstream_task_id": upstream_task_id, "model": poll.task.model}
        fields = {**ids, "attempt": poll.task.attempts, "outcome": INTERRUPTED}
        with attempt("poll", poll.task.trace_context, fields) as made:
            result = await self._gateway.call_in(poll.slot, lambda upstream: upstream.record_info(upstream_task_id))
            made.failure = None if result.outcome in (Outcome.ok, Outcome.pending) else result.outcome.value
            made.line |= {
                "outcome": result.outcome.value,
                "stage": result.value and result.value.stage.value,
                "upstream_code": result.code,
            }
        async with services.database.writes.begin() as session:
            task = await lock_claimed(session, Task, poll.task.id, poll.task.fence)
            # The lock may have been waited for.
            now = await services.database.now(session)
            await self._gateway.finish(session, poll.slot, result, now)
            if task is None:
                on_commit(session, services.metrics.leases_lost["poll"].inc)
                return
            services.lifecycle.record_call(task, CallKind.poll, result, now)
            if result.value is not None:
                await services.lifecycle.apply_report(session, task, result.value, now, ResolvedBy.poll)
            await services.lifecycle.schedule_next_poll(session, task, now, result.retry_after)

    async def _expire_unpollable(self) -> None:
        database = self._services.database
        async with database.reads() as session:
            now = await database.now(session)
            task_ids = await locking.list_unpollable(session, now, MAX_EXPIRED_AT_ONCE)
        for task_id in task_ids:
            await self._expire(task_id)

    async def _expire(self, task_id: str) -> None:
        """Expire one task in a transaction of its own: one bad row does not block the rest."""
        services = self._services
        try:
            async with services.database.transaction() as (session, now):
                task = await locking.lock_unpollable(session, task_id, now)
                if task is not None:
                    await services.lifecycle.expire_unpollable(session, task, now)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("expiry_error", task_id=task_id)
