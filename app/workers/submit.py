"""Sending orders upstream: each one once, at the upstream's pace, while it takes any."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from app.database.claims import Claim, lock_claimed
from app.database.engine import Session
from app.database.wakeups import SUBMITS
from app.enums import Charge, ErrorCode, ResolvedBy, TaskStatus
from app.models import Task
from app.services import Services
from app.tasks.repository import lock_task
from app.tasks.schedule import jittered, submit_retry_delay
from app.tasks.transitions import Failure
from app.upstream.hold import Hold, current_hold, hold_submits
from app.upstream.types import HoldReason, Report, SoundOrder, Stage, SubmitAnswer, Verdict
from app.workers.runner import FALLBACK_INTERVAL, Claimed, Loop, insist

log = structlog.get_logger()

# The lease outlives a request that begins this long after its claim; one that would begin later does not begin.
LATEST_START = timedelta(seconds=10)
# What the upstream answers when the order is at fault.
INVALID = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True)
class Submit:
    """An order of ours to send, with its place in the upstream's pace."""

    task: Task
    slot: int
    slot_fence: str
    claimed_at: float


def submit_loop(services: Services) -> Loop[Submit]:
    """The loop that sends what is queued."""
    submitter = _Submitter(services)
    concurrency = services.settings.upstream_rate.requests
    return Loop("submit", services.wakeups.event(SUBMITS), concurrency, submitter.claim, submitter.work)


class _Submitter:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._rng = random.Random()  # noqa: S311 - spreads retries, guards nothing

    async def claim(self, limit: int) -> Claimed[Submit]:
        """Take slots first, then as many orders, in one commit: what is claimed leaves at once."""
        services = self._services
        async with services.database.writes.begin() as session:
            if await current_hold(session):
                return Claimed(())
            now = await services.database.now(session)
            free = await services.pacer.lock_free(session, now, limit)
            tasks = await services.lifecycle.claim_submits(
                session, Claim(now, services.settings.submit_lease, len(free))
            )
            slots = await services.pacer.reserve(session, free[: len(tasks)], now)
            wait = await services.pacer.next_free_in(session, now)
        started = time.monotonic()
        submits = [Submit(task, slot, slots.fence, started) for task, slot in zip(tasks, slots.numbers, strict=True)]
        return Claimed(
            submits, FALLBACK_INTERVAL if len(tasks) < len(free) else min(FALLBACK_INTERVAL, wait.total_seconds())
        )

    async def work(self, submit: Submit) -> None:
        """Send one order and settle what came of it."""
        began = time.monotonic()
        answer = await self._send(submit)
        log.info(
            "submit",
            task_id=submit.task.id,
            attempt=submit.task.attempts,
            verdict=answer.verdict.value,
            upstream_code=answer.code,
            upstream_message=answer.message,
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        await insist(lambda: self._settle(submit, answer))

    async def _send(self, submit: Submit) -> SubmitAnswer:
        if time.monotonic() - submit.claimed_at > LATEST_START.total_seconds():
            # The process was stopped in between; by now somebody else may have judged the row.
            return SubmitAnswer(Verdict.not_sent, message="The process was stopped before the request left.")
        task = submit.task
        order = SoundOrder(
            prompt=task.prompt,
            model=task.model,
            sound_loop=task.sound_loop,
            sound_tempo=task.sound_tempo,
            sound_key=task.sound_key,
            grab_lyrics=task.grab_lyrics,
        )
        token = self._services.keyring.callback_token(task.id)
        return await self._services.upstream.submit(
            order, f"{self._services.settings.callback_base}/callbacks/{task.id}/{token}"
        )

    async def _settle(self, submit: Submit, answer: SubmitAnswer) -> None:
        services = self._services
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            await services.pacer.release(session, submit.slot, submit.slot_fence, now)
            task = await lock_claimed(session, Task, submit.task.id, submit.task.fence)
            if task is not None:
                await self._settle_task(session, task, answer, now)
            else:
                await self._settle_late(session, submit, answer, now)

    async def _settle_task(self, session: Session, task: Task, answer: SubmitAnswer, now: datetime) -> None:
        lifecycle = self._services.lifecycle
        if answer.verdict is Verdict.created:
            await lifecycle.begin_generating(session, task, answer.upstream_task_id, now)
        elif answer.verdict is Verdict.ambiguous:
            lifecycle.mark_unconfirmed(session, task, now)
        elif answer.verdict is Verdict.rejected:
            task.charge = Charge.none
            code = ErrorCode.invalid_request if answer.code in INVALID else ErrorCode.upstream_failed
            lifecycle.fail(session, task, Failure(code, answer.message, answer.code), now)
        elif answer.verdict is Verdict.held:
            await self._hold(session, task, answer, now)
        else:
            await self._retry_later(session, task, answer, now)

    async def _retry_later(self, session: Session, task: Task, answer: SubmitAnswer, now: datetime) -> None:
        if answer.verdict is Verdict.throttled:
            await self._services.pacer.pause(session, now, answer.retry_after)
        else:
            task.posts -= 1
        delay = jittered(submit_retry_delay(task.attempts, answer.retry_after), self._rng)
        self._services.lifecycle.requeue(session, task, now, now + delay)

    async def _hold(self, session: Session, task: Task, answer: SubmitAnswer, now: datetime) -> None:
        reason = answer.hold_reason or HoldReason.blocked
        await hold_submits(session, Hold(reason, now, answer.message), self._services.settings.hold_recheck)
        if reason is HoldReason.blocked:
            # It may be this order's words that a firewall dislikes: those behind it go first next time.
            self._services.lifecycle.requeue(
                session, task, now, now + submit_retry_delay(task.attempts, answer.retry_after)
            )
            return
        # Nothing about this order was wrong: it keeps its place in the queue.
        task.attempts = 0
        self._services.lifecycle.requeue(session, task, now, task.created_at)

    async def _settle_late(self, session: Session, submit: Submit, answer: SubmitAnswer, now: datetime) -> None:
        """
        The row was judged without us; what the upstream did is still true.

        That it has the task goes the way of any report: it may adopt, it cannot step
        back. That it has nothing settles a row that nobody has sent since.
        """
        lifecycle, task = self._services.lifecycle, await lock_task(session, submit.task.id)
        if task is None or answer.verdict is Verdict.ambiguous:
            return
        if answer.verdict is Verdict.created:
            if task.upstream_task_id is None:
                report = Report(Stage.running, upstream_task_id=answer.upstream_task_id)
                await lifecycle.apply_report(session, task, report, now, ResolvedBy.adoption)
        elif task.submitted_at != submit.task.submitted_at:
            return
        elif task.status is TaskStatus.unconfirmed:
            await self._settle_task(session, task, answer, now)
        else:
            lifecycle.clear_charge(session, task, now)
