"""The state machine of tasks: every transition is written here, with its event and its clips, in one commit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import update

from app.budgets.usage import REST, add_up
from app.config import Settings
from app.database.claims import CLAIMED_AT, Claim, Claims
from app.database.engine import Session
from app.database.wakeups import ARCHIVES, POLLS, notify_on_commit
from app.enums import CallbackOutcome, Charge, ErrorCode, EventType, ResolvedBy, TaskStatus
from app.errors import TaskAlreadyFinal
from app.models import Task
from app.tasks import repository
from app.tasks.clips import ClipLifecycle, lacks_clip, merge_clips, reported_facts, schedule_lyrics
from app.tasks.events import EventRecorder
from app.tasks.queue.entering import Entered, admitted, enter
from app.tasks.queue.fair import FairQueue
from app.tasks.queue.held import find_admissible
from app.tasks.queue.insertion import Order
from app.tasks.schedule import deadline_of, early_poll_at, is_audio_missing, next_late_poll_at, next_poll_at
from app.tasks.transitions import EXPIRIES, FINAL, NO_AUDIO, REVIVABLE, Failure, can_move, is_about_another, is_claim
from app.upstream.history import CallKind, with_call
from app.upstream.types import Report, Result, Stage

S = TaskStatus
_SENT = {"status": S.submitting, "charge": Charge.possible, "posts": Task.posts + 1, "submitted_at": CLAIMED_AT}
_SENT |= {"version": Task.version + 1, "updated_at": CLAIMED_AT}
_FAIR = FairQueue(lambda due: Claims(Task, due=due, values=_SENT))
_FIFO = Claims(Task, Task.status == S.queued, values=_SENT)
_GENERATING, *_ENDED = (
    Claims(Task, Task.status == status, repository.POLLABLE) for status in (S.generating, S.succeeded, S.failed)
)


class TaskLifecycle:
    """The only writer of tasks. Its methods take a session and never commit; a task that they take is locked."""

    def __init__(self, settings: Settings, recorder: EventRecorder, rng: random.Random) -> None:
        self._settings, self._recorder, self._rng = settings, recorder, rng
        self.clips = ClipLifecycle(recorder)

    async def create(self, session: Session, orders: Sequence[Order], now: datetime) -> Sequence[SimpleNamespace]:
        """Store tasks, as `create_each` does. Raises BudgetExceeded: then nothing of this transaction is to stay."""
        return [admitted(outcome) for outcome in await self.create_each(session, orders, now)]

    async def create_each(self, session: Session, orders: Sequence[Order], now: datetime) -> Sequence[Entered]:
        """Store tasks where the budgets have room; return for each order its columns and `clips`, or its refusal."""
        return await enter(session, self._settings, self._recorder, orders, now)

    async def let_in(self, session: Session, api_key_id: str, now: datetime, limit: int) -> int:
        """Make up to `limit` held tasks of a key due, as far as its budget has room; return their number."""
        found = await find_admissible(session, self._settings, self._recorder, api_key_id, now, limit)
        for task, reserved_at in found:
            task.due_at = reserved_at
            self._recorder.bump_version(session, task, reserved_at)
        return len(found)

    async def claim_submits(self, session: Session, claim: Claim) -> Sequence[Task]:
        """Claim due tasks to submit; committed before they are sent, since the upstream may have them from then on."""
        tasks = await (_FAIR if self._settings.queue == "fair" else _FIFO).claim(session, claim)
        for task in tasks:
            notify_on_commit(session, task.id)
            self._recorder.count_transition(session, task, claim.now)
        return tasks

    async def claim_polls(self, session: Session, claim: Claim, late: int) -> tuple[Sequence[Task], Sequence[Task]]:
        """Claim due tasks to poll: generating ones, then at most `late` that miss a clip or may yet succeed."""
        living = await _GENERATING.claim(session, claim)
        room, ended = min(late, claim.limit - len(living)), list[Task]()
        for claims in _ENDED:
            ended += await claims.claim(session, replace(claim, limit=room - len(ended)))
        return living, ended

    async def add_up_usage(self, session: Session, now: datetime, limit: int) -> int:
        """Add up to `limit` tasks at rest, whose cost has changed, to the sums of usage; return their number."""
        return await add_up(session, Task, update(Task), limit, Task.updated_at < now - REST)

    def record_call(self, task: Task, kind: CallKind, result: Result[Any], now: datetime) -> None:
        """Keep what came of a call about a task, for its operator: callers see nothing of it."""
        task.upstream_calls = with_call(task.upstream_calls, kind, result, now, task.submitted_at)

    async def apply_report(
        self, session: Session, task: Task, report: Report, now: datetime, via: ResolvedBy
    ) -> CallbackOutcome:
        """Apply a report, however often it comes; return `applied`, `stale`, or `mismatch`: it names another task."""
        if is_about_another(task, report):
            return CallbackOutcome.mismatch
        return CallbackOutcome.applied if await self._apply(session, task, report, now, via) else CallbackOutcome.stale

    async def _apply(self, session: Session, task: Task, report: Report, now: datetime, via: ResolvedBy) -> bool:
        before, known = task.version, reported_facts(task.clips)
        if task.status is S.failed and task.error_code in REVIVABLE and report.stage is Stage.succeeded:
            task.upstream_task_id = task.upstream_task_id or report.upstream_task_id
            self._revive(session, task, now)
        if task.status in FINAL:
            settle = self._merge_late_clips if task.status is S.succeeded else self._settle_charge
            settle(session, task, report, now)
            return task.version != before
        if task.status is not S.generating:
            await self.begin_generating(session, task, report.upstream_task_id, now)
        elif task.upstream_task_id is None and report.upstream_task_id is not None:
            # An earlier report carried no upstream id; without one the task cannot be polled.
            task.upstream_task_id = report.upstream_task_id
            self._recorder.bump_version(session, task, now)
        if self._settings.callback_trust == "pull" and is_claim(report, via):
            self._poll_early(session, task, now)
            return True
        fresh = merge_clips(task, report.clips, now)
        if fresh:
            notify_on_commit(session, ARCHIVES)
        if report.stage is Stage.failed:
            self._charge(session, task, Charge.refunded if report.refunded else task.charge)
            failure = Failure(report.error_code or ErrorCode.upstream_failed, report.message, report.code)
            self.fail(session, task, failure, now, via)
        elif report.stage is Stage.succeeded:
            self.finish(session, task, S.succeeded, now, via, clips=fresh)
            self._look_for_clips(task, report, now)
        elif fresh:
            self._recorder.record(session, task, EventType.task_progressed, now, {"clips": fresh})
        if report.stage is Stage.unclear:
            self._recheck_audio(session, task, report, now, via)
        if task.version == before and reported_facts(task.clips) != known:
            self._recorder.bump_version(session, task, now)
        return task.version != before

    async def begin_generating(self, session: Session, task: Task, upstream_task_id: str | None, now: datetime) -> None:
        """The upstream has the task: its response to the submit says so, or a report adopts the task."""
        task.upstream_task_id = task.upstream_task_id or upstream_task_id
        self._charge(session, task, Charge.charged)
        task.submitted_at = task.submitted_at or now
        task.attempts, task.fence = 0, None
        self._recorder.transition(session, task, S.generating, now, {"upstream_task_id": task.upstream_task_id})
        task.due_at = await self._next_poll_at(session, task, now)

    async def schedule_next_poll(
        self, session: Session, task: Task, now: datetime, retry_after: timedelta | None = None
    ) -> None:
        """Release a task after a poll: expire it at its deadline, else poll it again, at least `retry_after` later."""
        if task.status is S.generating:
            if not self.expire_if_overdue(session, task, now):
                due_at = max(await self._next_poll_at(session, task, now), now + (retry_after or timedelta()))
                task.fence, task.due_at = None, due_at
        elif task.due_at is not None:
            task.fence, task.due_at = None, next_late_poll_at(task, self._settings, now, self._rng)

    def requeue(self, session: Session, task: Task, now: datetime, due_at: datetime, *, was_sent: bool = True) -> None:
        """Queue a task again of which the upstream provably has nothing. `was_sent`: the POST counts."""
        task.charge, task.submitted_at, task.fence = Charge.none, None, None
        task.posts -= 0 if was_sent else 1
        self._recorder.transition(session, task, S.queued, now)
        task.due_at = due_at

    def return_to_queue(self, session: Session, task: Task, now: datetime, due_at: datetime, *, was_sent: bool) -> None:
        """Requeue a task whose submit was held for a reason that is not its own: what follows is a first attempt."""
        task.attempts = 0
        self.requeue(session, task, now, due_at, was_sent=was_sent)

    def reject(self, session: Session, task: Task, failure: Failure, now: datetime) -> None:
        """Fail a task whose submit was provably refused, so that it costs nothing."""
        task.charge = Charge.none
        self.fail(session, task, failure, now)

    async def attach(self, session: Session, task: Task, upstream_task_id: str, now: datetime) -> None:
        """Bind a task to an upstream task that an operator found, and poll it; its deadline counts from now."""
        task.upstream_task_id, task.submitted_at = upstream_task_id, now
        if task.status is S.failed:
            self._revive(session, task, now)
        else:
            await self.begin_generating(session, task, upstream_task_id, now)
        self._poll_early(session, task, now)

    def mark_unconfirmed(self, session: Session, task: Task, now: datetime) -> None:
        """Whether it was sent is not known: never submit it again, and wait for a callback until the deadline."""
        task.was_unconfirmed, task.fence, task.charge = True, None, Charge.possible
        self._recorder.transition(session, task, S.unconfirmed, now)
        task.due_at = (task.submitted_at or now) + self._settings.submit_deadline

    def fail(
        self, session: Session, task: Task, failure: Failure, now: datetime, via: ResolvedBy | None = None
    ) -> None:
        """End a task without a sound. `via` is the source of this, None where we decided it."""
        task.error_code, task.error_message, task.upstream_code = astuple(failure)
        self.finish(session, task, S.failed, now, via, error=asdict(failure))

    def expire_if_overdue(self, session: Session, task: Task, now: datetime) -> bool:
        """Fail a task whose deadline has passed; a late success will revive it."""
        if now < deadline_of(task, self._settings):
            return False
        self.fail(session, task, EXPIRIES[task.status], now)
        self._schedule_late_poll(task, now)
        return True

    async def expire_unpollable(self, session: Session, task: Task, now: datetime) -> None:
        """Handle a due task that cannot be polled: a lapsed submit is unconfirmed, others fail at their deadline."""
        if task.status is S.submitting:
            self.mark_unconfirmed(session, task, now)
        elif not self.expire_if_overdue(session, task, now):
            task.due_at = await self._next_poll_at(session, task, now)

    def cancel(self, session: Session, task: Task, now: datetime) -> None:
        """Cancel a task; the upstream may still charge what it already has. Raises TaskAlreadyFinal."""
        if not can_move(task.status, S.canceled):
            raise TaskAlreadyFinal
        self.finish(session, task, S.canceled, now, None)

    def clear_charge(self, session: Session, task: Task, now: datetime) -> None:
        """The upstream has refused the submit of a task that ended meanwhile: it costs nothing."""
        if task.status in FINAL and task.charge is Charge.possible:
            task.charge = Charge.none
            self._recorder.bump_version(session, task, now)

    def finish(
        self, session: Session, task: Task, status: TaskStatus, now: datetime, via: ResolvedBy | None, **changed: Any
    ) -> None:
        """Take the last transition of a task. `via` is the source of this, None where we decided it."""
        is_adopted = task.was_unconfirmed and via not in (None, ResolvedBy.operator)
        task.resolved_by = ResolvedBy.adoption if is_adopted else via
        task.completed_at, task.due_at, task.fence = now, None, None
        self._recorder.transition(session, task, status, now, {"resolved_by": task.resolved_by, **changed})
        if status is S.succeeded and task.grab_lyrics:
            schedule_lyrics(task, now)
            notify_on_commit(session, ARCHIVES)

    def _revive(self, session: Session, task: Task, now: datetime) -> None:
        """A task that we gave up on is with the upstream after all."""
        task.error_code = task.error_message = task.upstream_code = task.completed_at = task.resolved_by = None
        self._charge(session, task, Charge.charged)
        task.status = S.generating
        self._recorder.count_transition(session, task, now)
        self._recorder.record(session, task, EventType.task_revived, now, {"status": S.generating, "error": None})

    def _settle_charge(self, session: Session, task: Task, report: Report, now: datetime) -> None:
        """The upstream has a task that ended without a sound: only its upstream id and charge change."""
        charge = Charge.refunded if report.refunded or task.charge is Charge.refunded else Charge.charged
        upstream_task_id = task.upstream_task_id or report.upstream_task_id
        if (task.charge, task.upstream_task_id) != (charge, upstream_task_id):
            task.upstream_task_id = upstream_task_id
            self._charge(session, task, charge)
            self._recorder.bump_version(session, task, now)
        if report.stage is Stage.failed:
            task.due_at, task.fence = None, None
        elif task.due_at is None:
            self._schedule_late_poll(task, now)

    def _charge(self, session: Session, task: Task, charge: Charge) -> None:
        self._recorder.count_charge(session, task.charge, charge)
        task.charge = charge

    def _schedule_late_poll(self, task: Task, now: datetime) -> None:
        """Go on polling a task that we gave up on: it is paid for, and what hid its end may pass."""
        if task.status is S.failed and task.error_code in REVIVABLE and task.upstream_task_id is not None:
            task.attempts, task.fence = 0, None
            task.due_at = next_late_poll_at(task, self._settings, now, self._rng)

    def _merge_late_clips(self, session: Session, task: Task, report: Report, now: datetime) -> None:
        """Add the clips of a succeeded task whose audio came later than that of the others; nothing else changes."""
        if report.stage is not Stage.succeeded:
            return
        if merge_clips(task, report.clips, now, refreshes=False):
            self._recorder.bump_version(session, task, now)
            notify_on_commit(session, ARCHIVES)
        self._look_for_clips(task, report, now)

    def _look_for_clips(self, task: Task, report: Report, now: datetime) -> None:
        """Go on polling a succeeded task while a clip that the upstream names has no audio: it is paid for."""
        if not lacks_clip(task, report.clips):
            task.due_at, task.fence = None, None
        elif task.due_at is None and task.upstream_task_id is not None:
            task.attempts, task.due_at = 0, next_late_poll_at(task, self._settings, now, self._rng)

    def _poll_early(self, session: Session, task: Task, now: datetime) -> None:
        task.due_at = early_poll_at(task, now)
        notify_on_commit(session, POLLS)

    async def _next_poll_at(self, session: Session, task: Task, now: datetime) -> datetime:
        is_missing = await repository.are_callbacks_missing(session)
        return next_poll_at(task, self._settings, now, self._rng, callbacks_missing=is_missing)

    def _recheck_audio(self, session: Session, task: Task, report: Report, now: datetime, via: ResolvedBy) -> None:
        if via is not ResolvedBy.poll:
            # A repeated callback must not use up the checks.
            self._poll_early(session, task, now)
            return
        task.audio_checks += 1
        is_missing = is_audio_missing(task, self._settings, now)
        if is_missing and task.clips:
            self.finish(session, task, S.succeeded, now, via)
            self._look_for_clips(task, report, now)
        elif is_missing:
            self.fail(session, task, NO_AUDIO, now, via)
