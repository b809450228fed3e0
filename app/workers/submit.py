"""Submitting queued tasks: each one once, within the upstream's rate limit, unless submits are held."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.budgets.booking import settle_erased
from app.config import CALLBACKS_PATH
from app.database.backoff import jittered
from app.database.claims import Claim, is_due
from app.database.engine import Session, on_commit
from app.database.group_commit import GroupCommit, RowLocked
from app.database.records import record_sessions
from app.database.wakeups import SUBMITS
from app.enums import ErrorCode, ResolvedBy, TaskStatus
from app.models import Task
from app.observability.redaction import hide_in_log
from app.services import Services
from app.tasks.locking import lock_free_tasks, write_tasks
from app.tasks.schedule import submit_retry_delay
from app.tasks.transitions import Failure
from app.upstream.history import CallKind, SubmitRecorder, read_history
from app.upstream.hold import Hold, current_hold, release_submits, take_probe
from app.upstream.pacing import MIN_WAIT, Slot
from app.upstream.refusals import Refusals, change_refusals, is_about_model, read_refusals
from app.upstream.types import HoldReason, Outcome, Report, Result, SoundRequest, Stage
from app.workers.attempts import INTERRUPTED, attempt
from app.workers.runner import FALLBACK_INTERVAL, Claimed, Loop, insist

# The lease outlives a request that begins this long after its claim; one that would begin later does not begin.
MAX_START_DELAY = timedelta(seconds=10)
# Tasks that one commit claims, or settles, at most.
MAX_AT_ONCE = 50
# Outcomes that prove that the upstream created nothing, and that the task is not at fault.
RETRYABLE = frozenset({Outcome.throttled, Outcome.not_sent})
# Claims in one commit, where tasks of refused models are in the way of others.
MAX_ROUNDS = 20
# Attempts after which a task that alone is blocked fails: each holds the queue of all for a while.
MAX_BLOCKED = 6
IS_DUE = is_due(Task, Task.status == TaskStatus.queued)


@dataclass(frozen=True, slots=True)
class Submit:
    """A claimed task with its slot. `claimed_at` is on the monotonic clock, in seconds."""

    task: Task
    slot: Slot
    claimed_at: float


def submit_loop(services: Services) -> Loop[Submit]:
    """The loop that submits queued tasks."""
    worker = _SubmitWorker(services)
    concurrency = services.settings.upstream_rate.requests
    return Loop("submit", services.wakeups.event(SUBMITS), concurrency, worker.claim, worker.work, IS_DUE)


class _SubmitWorker:
    def __init__(self, services: Services) -> None:
        self._services, self._gateway = services, services.gateway
        self._recorder = SubmitRecorder()
        self._sessions = record_sessions(services.database.writes)
        observe = services.metrics.batches["submits"].observe
        self._results = GroupCommit(self._store, MAX_AT_ONCE, is_idempotent=True, observe=observe)
        # On the monotonic clock, in seconds: until then no slot can be free.
        self._none_free_until = 0.0

    async def claim(self, limit: int) -> Claimed[Submit]:
        """
        Lock free slots first, then claim as many tasks, in one commit: what is claimed is sent at once.

        Each new task wakes the loop of every replica. While no slot can be free a claim
        costs no transaction.
        """
        services, pacer = self._services, self._gateway.pacer
        if (none_free_for := self._none_free_until - time.monotonic()) > 0:
            return Claimed((), timedelta(seconds=none_free_for))
        async with services.database.writes.begin() as session:
            hold = await current_hold(session, self._gateway.key)
            now = await services.database.now(session)
            free = await pacer.lock_free(session, now, 1 if hold else min(limit, MAX_AT_ONCE))
            # A probe that is taken without a slot would be lost.
            if hold and not (free and await take_probe(session, hold.job)):
                return Claimed(())
            claim = Claim(now, services.settings.submit_lease, len(free))
            tasks, is_more = await self._claim_sendable(session, claim)
            slots = await pacer.reserve(session, free[: len(tasks)], now)
            # Where tasks wait for slots, and not the reverse.
            wait = await pacer.next_free_in(session, now) if len(tasks) == len(free) else None
            wait = timedelta() if is_more else wait
        started = time.monotonic()
        if wait is not None and wait > MIN_WAIT:
            # A slot that is taken now is free a period after its answer at the earliest.
            bound = min(wait, services.settings.upstream_rate.period, FALLBACK_INTERVAL)
            self._none_free_until = started + bound.total_seconds()
        submits = [Submit(task, slot, started) for task, slot in zip(tasks, slots, strict=True)]
        return Claimed(submits, wait)

    async def _claim_sendable(self, session: Session, claim: Claim) -> tuple[Sequence[Task], bool]:
        """
        Claim tasks to be sent, and whether others may be due that no slot was left for, or no time.

        Those of a refused model go back to the queue and use up no slot; one of them is sent now and then.
        """
        settings, lifecycle = self._services.settings, self._services.lifecycle
        refusals = await read_refusals(session, settings.hold_recheck)
        sendable: list[Task] = []
        for _ in range(MAX_ROUNDS):
            tasks = await lifecycle.claim_submits(session, replace(claim, limit=claim.limit - len(sendable)))
            refused = [task for task in tasks if refusals.is_refused(settings.sent_model(task.model), claim.now)]
            sendable += [task for task in tasks if task not in refused]
            if not refused:
                return sendable, False
            sendable += await self._send_back(session, refused, claim.now)
            await session.flush()
        return sendable, len(sendable) < claim.limit

    async def _send_back(self, session: Session, tasks: Sequence[Task], now: datetime) -> Sequence[Task]:
        """Queue tasks of refused models again, but for those that are to show what becomes of one; return these."""
        settings, probes = self._services.settings, list[Task]()

        def part(refusals: Refusals) -> None:
            for task in tasks:
                model = settings.sent_model(task.model)
                if not refusals.is_refused(model, now) or refusals.take_probe(model, now):
                    probes.append(task)
                else:
                    due_at = refusals.wait_until(model, now)
                    self._services.lifecycle.return_to_queue(session, task, now, due_at, was_sent=False)

        await change_refusals(session, settings.hold_recheck, now, part)
        return probes

    async def work(self, submit: Submit) -> None:
        """Submit one task and settle the result."""
        task = submit.task
        hide_in_log(task.prompt)
        ids = {"task_id": task.id, "upstream_task_id": None, "model": task.model, "attempt": task.attempts}
        # The line is there before the result is settled: where that is cut off, it says what was paid for.
        with attempt("submit", task.trace_context, {**ids, "outcome": INTERRUPTED}) as made:
            result = await self._send(submit)
            made.failure = None if result.outcome is Outcome.ok else result.outcome.value
            made.line |= {
                "upstream_task_id": result.value,
                "outcome": result.outcome.value,
                "hold_reason": result.hold_reason and result.hold_reason.value,
                "upstream_code": result.code,
                "upstream_message": result.message,
            }
        await insist(lambda: self._results.add_patiently((submit, result), None))

    async def _send(self, submit: Submit) -> Result[str]:
        if time.monotonic() - submit.claimed_at > MAX_START_DELAY.total_seconds():
            # The process was stopped in between; the lease may have ended, and another replica settled the row.
            return Result(Outcome.not_sent, message="The process was stopped before the request was sent.")
        task = submit.task
        token = self._services.keyring.callback_token(task.id)
        callback_url = f"{self._services.settings.callback_base}{CALLBACKS_PATH}{task.id}/{token}"
        request = _sound_request(task, self._services.settings.sent_model(task.model), callback_url)
        return await self._gateway.call_in(submit.slot, lambda upstream: upstream.submit(request))

    async def _store(self, take: Callable[[], Sequence[tuple[Submit, Result[str]]]]) -> Sequence[Exception | None]:
        """Settle the results that wait, in one commit; those of tasks that others have locked are left out."""
        database, gateway = self._services.database, self._gateway
        async with self._sessions.begin() as session:
            now = await database.begin_briefly(session)
            batch = take()
            tasks, _ = await lock_free_tasks(session, {submit.task.id for submit, _ in batch})
            free = [(submit, result) for submit, result in batch if tasks.get(submit.task.id, submit) is not None]
            hold = await current_hold(session, gateway.key)
            waits = await self._note_models(session, free, now)
            await gateway.pacer.release(session, [submit.slot for submit, _ in free], now)
            for submit, result in free:
                await gateway.heed(session, result, now)
                if result.outcome is Outcome.held:
                    hold = await current_hold(session, gateway.key)
                task = tasks.get(submit.task.id)
                if task is not None:
                    self._services.lifecycle.record_call(task, CallKind.submit, result, now)
                if task is not None and task.fence == submit.task.fence:
                    await self._settle_task(session, task, result, now, hold, waits.get(task.id))
                else:
                    on_commit(session, self._services.metrics.leases_lost["submit"].inc)
                    await self._settle_late(session, task, submit, result, now, hold)
            await write_tasks(session, tasks.values())
            # Last, because all submits of all replicas share the row.
            for _, result in free:
                await self._recorder.record(session, result, now, gateway.key)
        return [None if tasks.get(submit.task.id, submit) is not None else RowLocked() for submit, _ in batch]

    async def _note_models(
        self, session: Session, batch: Sequence[tuple[Submit, Result[str]]], now: datetime
    ) -> Mapping[str, datetime]:
        """Note which models are refused; return by id when each task that was refused for one is due again."""
        settings, waits = self._services.settings, dict[str, datetime]()
        known = await read_refusals(session, settings.hold_recheck)
        told = [(submit.task.id, settings.sent_model(submit.task.model), result) for submit, result in batch]
        news = [each for each in told if known.is_changed_by(*each[1:])]

        def note(refusals: Refusals) -> None:
            for task_id, model, result in news:
                refusals.note(task_id, model, result, now)
            for task_id, model, result in news:
                if is_about_model(result) and refusals.is_refused(model, now):
                    waits[task_id] = refusals.wait_until(model, now)

        if news:
            await change_refusals(session, settings.hold_recheck, now, note)
        return waits

    async def _settle_task(
        self,
        session: Session,
        task: Task,
        result: Result[str],
        now: datetime,
        hold: Hold | None,
        wait_until: datetime | None = None,
    ) -> None:
        """`hold` is the one in force before this result, if any; `wait_until` is set where its model is refused."""
        lifecycle = self._services.lifecycle
        if result.outcome is Outcome.ok:
            await lifecycle.begin_generating(session, task, result.value, now)
            is_sent_since = hold is not None and task.submitted_at is not None and task.submitted_at > hold.since
            if hold is not None and (is_sent_since or hold.reason is HoldReason.blocked):
                # An upstream that accepts a task blocks nobody, and one that was sent during the hold ends any other.
                await release_submits(session, hold.job)
        elif result.outcome in RETRYABLE:
            due_at = now + jittered(submit_retry_delay(task.attempts, result.retry_after), self._services.rng)
            lifecycle.requeue(session, task, now, due_at, was_sent=result.outcome is not Outcome.not_sent)
        elif result.outcome is Outcome.held and result.hold_reason is HoldReason.blocked:
            if await self._is_blocked_alone(session, task, now):
                lifecycle.reject(session, task, Failure(ErrorCode.upstream_failed, result.message, result.code), now)
                await release_submits(session)
            else:
                # A firewall may dislike the words of this prompt: the tasks behind it go first next time.
                due_at = now + submit_retry_delay(task.attempts, result.retry_after)
                lifecycle.requeue(session, task, now, due_at)
        elif result.outcome is Outcome.held:
            was_sent = result.hold_reason is not HoldReason.unsendable
            # It keeps its place.
            lifecycle.return_to_queue(session, task, now, task.created_at, was_sent=was_sent)
        elif wait_until is not None:
            lifecycle.return_to_queue(session, task, now, wait_until, was_sent=True)
        elif result.outcome is Outcome.invalid:
            failure = Failure(ErrorCode.invalid_request, result.message, result.code)
            lifecycle.reject(session, task, failure, now)
        elif result.outcome is Outcome.rejected:
            lifecycle.reject(session, task, Failure(ErrorCode.upstream_failed, result.message, result.code), now)
        else:
            lifecycle.mark_unconfirmed(session, task, now)

    async def _is_blocked_alone(self, session: Session, task: Task, now: datetime) -> bool:
        """Whether this task is blocked again and again while others are accepted in between."""
        if task.attempts < MAX_BLOCKED:
            return False
        since_last = submit_retry_delay(task.attempts - 1, None) + self._services.settings.hold_recheck
        accepted_at = (await read_history(session)).succeeded_at
        return accepted_at is not None and accepted_at > now - since_last

    async def _settle_late(
        self, session: Session, task: Task | None, submit: Submit, result: Result[str], now: datetime, hold: Hold | None
    ) -> None:
        """
        Settle a result that came after the lease, when the row was settled without it.

        An acceptance is applied like any report: it may adopt the task, it cannot step
        back. A refusal settles a row that has not been submitted again since. None is one that was erased.
        """
        lifecycle, was_taken = self._services.lifecycle, result.outcome is Outcome.ok
        if result.outcome is Outcome.ambiguous:
            return
        if task is None:
            await settle_erased(session, submit.task, self._services.metrics, now, was_taken=was_taken)
        elif was_taken:
            report = Report(Stage.running, upstream_task_id=result.value)
            await lifecycle.apply_report(session, task, report, now, ResolvedBy.adoption)
        elif task.submitted_at != submit.task.submitted_at:
            return
        elif task.status is TaskStatus.unconfirmed:
            await self._settle_task(session, task, result, now, hold)
        else:
            lifecycle.clear_charge(session, task, now)


def _sound_request(task: Task, model: str, callback_url: str) -> SoundRequest:
    return SoundRequest(
        prompt=task.prompt,
        model=model,
        sound_loop=task.sound_loop,
        sound_tempo=task.sound_tempo,
        sound_key=task.sound_key,
        grab_lyrics=task.grab_lyrics,
        callback_url=callback_url,
    )
