"""Looking after tasks that were sent: asking where callbacks stay away, and giving up when it is time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select

from app.callbacks.service import is_about_another
from app.database.claims import Claim, claim_due, lock_claimed
from app.database.engine import TRANSIENT, Session
from app.database.wakeups import POLLS
from app.enums import ResolvedBy, TaskStatus
from app.models import Task
from app.services import Services
from app.upstream.pacing import poll_share
from app.upstream.types import PollAnswer
from app.workers.asking import apply_backpressure
from app.workers.runner import FALLBACK_INTERVAL, Claimed, Loop

log = structlog.get_logger()

LAPSED_AT_ONCE = 100
# A failed task is due only where it was given up on: it may yet turn out to have its sound.
ANSWERABLE = Task.status.in_([TaskStatus.generating, TaskStatus.failed]) & Task.upstream_task_id.isnot(None)
UNANSWERABLE = Task.status.in_([TaskStatus.submitting, TaskStatus.unconfirmed]) | (
    (Task.status == TaskStatus.generating) & Task.upstream_task_id.is_(None)
)


@dataclass(frozen=True, slots=True)
class Poll:
    """A task of ours to ask about, with its place in the upstream's pace."""

    task: Task
    slot: int
    slot_fence: str


def poll_loop(services: Services) -> Loop[Poll]:
    """The loop that asks."""
    poller = _Poller(services)
    return Loop(
        "poll", services.wakeups.event(POLLS), services.settings.upstream_rate.requests, poller.claim, poller.work
    )


class _Poller:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def claim(self, limit: int) -> Claimed[Poll]:
        """Judge what is overdue without asking, then take slots and as many tasks to ask about."""
        services = self._services
        for task_id in await self._overdue():
            await self._judge(task_id)
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            share = await poll_share(session, now)
            free = await services.pacer.lock_free(session, now, limit, share)
            claim = Claim(now, services.settings.submit_lease, len(free))
            tasks = await claim_due(session, Task, claim, ANSWERABLE)
            slots = await services.pacer.reserve(session, free[: len(tasks)], now)
            wait = await services.pacer.next_free_in(session, now, share)
        polls = [Poll(task, slot, slots.fence) for task, slot in zip(tasks, slots.numbers, strict=True)]
        return Claimed(
            polls, FALLBACK_INTERVAL if len(tasks) < len(free) else min(FALLBACK_INTERVAL, wait.total_seconds())
        )

    async def work(self, poll: Poll) -> None:
        """Ask about one task and settle what was said."""
        began = time.monotonic()
        answer = await self._services.upstream.record_info(poll.task.upstream_task_id or "")
        log.info(
            "poll",
            task_id=poll.task.id,
            attempt=poll.task.attempts,
            verdict=answer.kind.value,
            stage=answer.report and answer.report.stage.value,
            upstream_code=answer.code,
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            await services.pacer.release(session, poll.slot, poll.slot_fence, now)
            await apply_backpressure(services, session, answer, now)
            task = await lock_claimed(session, Task, poll.task.id, poll.task.fence)
            if task is not None:
                await self._settle_task(session, task, answer, now)

    async def _settle_task(self, session: Session, task: Task, answer: PollAnswer, now: datetime) -> None:
        lifecycle = self._services.lifecycle
        if answer.report is not None and not is_about_another(task, answer.report):
            await lifecycle.apply_report(session, task, answer.report, now, ResolvedBy.poll)
        if task.status is TaskStatus.generating:
            if not lifecycle.expire_if_overdue(session, task, now):
                task.fence, wait = None, answer.retry_after or timedelta()
                task.due_at = max(await lifecycle.next_poll_at(session, task, now), now + wait)
        elif task.due_at is not None:
            task.fence, task.due_at = None, lifecycle.next_late_poll_at(task, now)

    async def _overdue(self) -> Sequence[str]:
        async with self._services.database.reads() as session:
            now = await self._services.database.now(session)
            found = select(Task.id).where(Task.due_at <= now, UNANSWERABLE).order_by(Task.due_at)
            return (await session.scalars(found.limit(LAPSED_AT_ONCE))).all()

    async def _judge(self, task_id: str) -> None:
        """
        A submit whose lease ended has an unknown outcome; what nobody can be asked about only has its deadline.

        Each row is judged apart: one that cannot be costs nobody else a turn.
        """
        services = self._services
        try:
            async with services.database.writes.begin() as session:
                now = await services.database.now(session)
                overdue = select(Task).where(Task.id == task_id, Task.due_at <= now, UNANSWERABLE)
                task = await session.scalar(overdue.with_for_update(skip_locked=True))
                if task is None:
                    return
                if task.status is TaskStatus.submitting:
                    services.lifecycle.mark_unconfirmed(session, task, now)
                elif not services.lifecycle.expire_if_overdue(session, task, now):
                    task.due_at = await services.lifecycle.next_poll_at(session, task, now)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("judgement_broke", task_id=task_id)
