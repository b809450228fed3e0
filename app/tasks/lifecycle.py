"""The life of a task: every step, its event and its clips are written here, in one commit, once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.config import Settings
from app.database.base import new_id
from app.database.claims import Claim, claim_due
from app.database.engine import Session
from app.database.wakeups import ARCHIVES, POLLS, SUBMITS, notify_on_commit
from app.enums import Charge, ErrorCode, EventType, ResolvedBy, TaskStatus
from app.errors import TaskAlreadyFinal
from app.models import Clip, Task
from app.signed_urls import SignedUrls
from app.tasks import repository
from app.tasks.clips import UPSTREAM_RETENTION, any_modified, find_clip, merge_clips, schedule_lyrics, update_clip
from app.tasks.events import EventRecorder
from app.tasks.payloads import EventPublisher, publish_to_webhook_url
from app.tasks.schedule import MIN_POLL_INTERVAL, ladder, late_poll_delay, poll_delay
from app.tasks.schemas import TaskCreate
from app.tasks.transitions import FINAL, REVIVABLE, Failure, can_move
from app.upstream.types import Report, ReportedClip, Stage

S = TaskStatus
# How often audio that the upstream says is there is looked for again before we believe that it is not; an eager ladder
# takes no less time for it than a steady one, since a sound may be called ready long before it is.
MAX_AUDIO_CHECKS = 5


class TaskLifecycle:
    """The only writer of tasks. Its methods are handed a session and never commit."""

    def __init__(
        self,
        settings: Settings,
        signed_urls: SignedUrls,
        rng: random.Random | None = None,
        publishers: Sequence[EventPublisher] = (publish_to_webhook_url,),
    ) -> None:
        self._settings = settings
        self._recorder = EventRecorder(signed_urls, publishers, settings.webhook_schedule[0])
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing

    @property
    def default_model(self) -> str:
        """What makes a sound whose order names no model."""
        return self._settings.models[0]

    def create(
        self, session: Session, api_key_id: str, order: TaskCreate, now: datetime, callback_url: str | None = None
    ) -> Task:
        """Keep an order; it is sent as soon as a submit loop finds it."""
        task = Task(
            id=new_id(),
            api_key_id=api_key_id,
            status=S.queued,
            version=0,
            labels=order.metadata,
            model=order.model or self.default_model,
            **order.model_dump(exclude={"metadata", "model"}),
            callback_url=callback_url,
            charge=Charge.none,
            posts=0,
            audio_checks=0,
            attempts=0,
            was_unconfirmed=False,
            clips=[],
            created_at=now,
            updated_at=now,
            due_at=now,
        )
        session.add(task)
        self._recorder.record(session, task, EventType.task_created, now, {"status": S.queued})
        notify_on_commit(session, SUBMITS)
        return task

    async def claim_submits(self, session: Session, claim: Claim) -> Sequence[Task]:
        """Take due orders to send; committed before they leave, since the upstream may have them from then on."""
        sent = {"status": S.submitting, "charge": Charge.possible, "posts": Task.posts + 1, "submitted_at": claim.now}
        changed = {"version": Task.version + 1, "updated_at": claim.now}
        tasks = await claim_due(session, Task, claim, Task.status == S.queued, **sent, **changed)
        for task in tasks:
            notify_on_commit(session, task.id)
        return tasks

    async def apply_report(self, session: Session, task: Task, report: Report, now: datetime, via: ResolvedBy) -> bool:
        """
        Take in what the upstream says about a locked task; return whether it was news.

        Callbacks and polls both come through here, so a step and its event are made
        once, however often we hear the same thing. The caller has made sure that the
        report is about this task.
        """
        before = task.version
        if task.status is S.failed and task.error_code in REVIVABLE and report.stage is Stage.succeeded:
            task.upstream_task_id = task.upstream_task_id or report.upstream_task_id
            self.revive(session, task, now)
        if task.status is S.succeeded:
            self._merge_late_clips(session, task, report, now)
            return task.version != before
        if task.status in FINAL:
            self._settle_charge(session, task, report, now)
            return task.version != before
        if task.status is not S.generating:
            await self.begin_generating(session, task, report.upstream_task_id, now)
        elif task.upstream_task_id is None and report.upstream_task_id is not None:
            # What was heard before named no task; without its name nobody could be asked.
            task.upstream_task_id = report.upstream_task_id
            self._recorder.bump_version(session, task, now)
        if self._needs_confirmation(report, via):
            schedule_poll(session, task, now)
            return True
        fresh = merge_clips(task, report.clips, now)
        if fresh:
            notify_on_commit(session, ARCHIVES)
        if report.stage is Stage.failed:
            self._fail_as_reported(session, task, report, now, via)
        elif report.stage is Stage.succeeded:
            self.end(session, task, S.succeeded, now, via, clips=fresh)
        elif fresh:
            self._recorder.record(session, task, EventType.task_progressed, now, {"clips": fresh})
        if report.stage is Stage.unclear:
            self._recheck_audio(session, task, now, via)
        if task.version == before and any_modified(session, task.clips):
            self._recorder.bump_version(session, task, now)
        return task.version != before

    async def begin_generating(self, session: Session, task: Task, upstream_task_id: str | None, now: datetime) -> None:
        """The upstream has the task: told by its answer to the submit, or adopted from a report."""
        task.upstream_task_id = task.upstream_task_id or upstream_task_id
        task.charge = Charge.charged
        task.submitted_at = task.submitted_at or now
        task.attempts, task.fence = 0, None
        self._recorder.transition(session, task, S.generating, now, {"upstream_task_id": task.upstream_task_id})
        task.due_at = await self.next_poll_at(session, task, now)

    async def next_poll_at(self, session: Session, task: Task, now: datetime) -> datetime:
        """When a generating task is looked at next; its deadline is the last look."""
        away = await repository.callbacks_stay_away(session)
        delay = ladder(self._settings, callbacks_stay_away=away).delay(task.attempts)
        return min(now + poll_delay(delay, self._rng), max(self._deadline_of(task), now + MIN_POLL_INTERVAL))

    def requeue(self, session: Session, task: Task, now: datetime, due_at: datetime) -> None:
        """The upstream provably has nothing of this task: it is sent again when due."""
        task.charge, task.submitted_at, task.fence = Charge.none, None, None
        self._recorder.transition(session, task, S.queued, now)
        task.due_at = due_at

    def mark_unconfirmed(self, session: Session, task: Task, now: datetime) -> None:
        """The submit's answer is lost: never send it again, and wait for the upstream to call."""
        task.was_unconfirmed, task.fence = True, None
        self._recorder.transition(session, task, S.unconfirmed, now)
        task.due_at = (task.submitted_at or now) + self._settings.submit_deadline

    def fail(
        self, session: Session, task: Task, failure: Failure, now: datetime, via: ResolvedBy | None = None
    ) -> None:
        """End a task that has no sound; `via` tells who said so, None that we did."""
        task.error_code, task.error_message = failure.code, failure.message
        task.upstream_code = failure.upstream_code
        error = {"code": failure.code, "message": failure.message, "upstream_code": failure.upstream_code}
        self.end(session, task, S.failed, now, via, error=error)

    def expire_if_overdue(self, session: Session, task: Task, now: datetime) -> bool:
        """Fail a task whose deadline has passed; a late success will revive it."""
        if now < self._deadline_of(task):
            return False
        if task.status is S.unconfirmed:
            message = "The submit's answer was lost and no callback came: the upstream may or may not have taken it."
            self.fail(session, task, Failure(ErrorCode.outcome_unknown, message), now)
        else:
            message = "The upstream took the task and did not finish it in time."
            self.fail(session, task, Failure(ErrorCode.deadline_exceeded, message), now)
        self._schedule_late_poll(task, now)
        return True

    def next_late_poll_at(self, task: Task, now: datetime) -> datetime | None:
        """When a task that we gave up on is asked about again, as long as the upstream may have its sound."""
        delay = poll_delay(late_poll_delay(task.attempts, self._settings.poll_every), self._rng)
        return now + delay if now < (task.submitted_at or task.created_at) + UPSTREAM_RETENTION else None

    def note_archived(self, session: Session, task: Task, clip: Clip, now: datetime) -> None:
        """Our copy of a clip's audio, whose facts are on the clip already, can be had from now on."""
        clip.archived_at, clip.archive_error = now, None
        facts = {"index": clip.index, "content_type": clip.content_type, "size": clip.size, "sha256": clip.sha256}
        self._recorder.record(session, task, EventType.clip_archived, now, {"clips": [facts]})

    def note_lyrics(self, session: Session, task: Task, clip: Clip, words: list[dict[str, Any]], now: datetime) -> None:
        """The words of a clip are known; none at all is normal for sounds."""
        clip.lyrics = words
        self._recorder.bump_version(session, task, now)

    def freshen_links(self, session: Session, task: Task, reported: Sequence[ReportedClip], now: datetime) -> None:
        """Take over the links that the upstream gives for clips that we know."""
        for position, news in enumerate(reported):
            clip = find_clip(task, news, position)
            if clip is not None:
                update_clip(clip, news)
        if any_modified(session, task.clips):
            self._recorder.bump_version(session, task, now)

    def cancel(self, session: Session, task: Task, now: datetime) -> None:
        """Stop caring about a task; what the upstream already has, it may still charge. Raises TaskAlreadyFinal."""
        if not can_move(task.status, S.canceled):
            raise TaskAlreadyFinal
        self.end(session, task, S.canceled, now, None)

    def clear_charge(self, session: Session, task: Task, now: datetime) -> None:
        """The upstream made nothing of a task that ended meanwhile, so that it costs nothing."""
        if task.status in FINAL and task.charge is Charge.possible:
            task.charge = Charge.none
            self._recorder.bump_version(session, task, now)

    def end(
        self, session: Session, task: Task, status: TaskStatus, now: datetime, via: ResolvedBy | None, **changed: Any
    ) -> None:
        """Take the last step of a task; `via` tells who said so, None that we did."""
        is_adopted = task.was_unconfirmed and via not in (None, ResolvedBy.operator)
        task.resolved_by = ResolvedBy.adoption if is_adopted else via
        task.completed_at, task.due_at, task.fence = now, None, None
        self._recorder.transition(session, task, status, now, {"resolved_by": task.resolved_by, **changed})
        if status is S.succeeded and task.grab_lyrics:
            schedule_lyrics(task, now)
            notify_on_commit(session, ARCHIVES)

    def revive(self, session: Session, task: Task, now: datetime) -> None:
        """A task that we gave up on turns out to be on its way."""
        task.error_code, task.error_message, task.upstream_code = None, None, None
        task.charge, task.completed_at, task.resolved_by = Charge.charged, None, None
        task.status = S.generating
        self._recorder.record(session, task, EventType.task_revived, now, {"status": S.generating, "error": None})

    def _settle_charge(self, session: Session, task: Task, report: Report, now: datetime) -> None:
        """A task that ended without a sound turns out to be with the upstream: only its name and cost are news."""
        is_refunded = report.refunded or task.charge is Charge.refunded
        charge = Charge.refunded if is_refunded else Charge.charged
        upstream_task_id = task.upstream_task_id or report.upstream_task_id
        if (task.charge, task.upstream_task_id) != (charge, upstream_task_id):
            task.charge, task.upstream_task_id = charge, upstream_task_id
            self._recorder.bump_version(session, task, now)
        if report.stage is Stage.failed:
            task.due_at, task.fence = None, None
        elif task.due_at is None:
            self._schedule_late_poll(task, now)

    def _schedule_late_poll(self, task: Task, now: datetime) -> None:
        """Whatever kept the answer from us before its deadline may end: what was paid for is asked for until then."""
        if task.status is S.failed and task.error_code in REVIVABLE and task.upstream_task_id is not None:
            task.attempts, task.fence = 0, None
            task.due_at = self.next_late_poll_at(task, now)

    def _merge_late_clips(self, session: Session, task: Task, report: Report, now: datetime) -> None:
        """A task that has succeeded stays as it is, but for clips whose audio shows later than that of the others."""
        if report.stage is Stage.succeeded and merge_clips(task, report.clips, now, freshens=False):
            self._recorder.bump_version(session, task, now)
            notify_on_commit(session, ARCHIVES)

    def _needs_confirmation(self, report: Report, via: ResolvedBy) -> bool:
        is_told_by_callback = via is ResolvedBy.callback and self._settings.callback_trust == "pull"
        return is_told_by_callback and report.stage is not Stage.running

    def _deadline_of(self, task: Task) -> datetime:
        spans = {S.generating: self._settings.task_deadline, S.unconfirmed: self._settings.submit_deadline}
        return (task.submitted_at or task.created_at) + spans[task.status]

    def _fail_as_reported(self, session: Session, task: Task, report: Report, now: datetime, via: ResolvedBy) -> None:
        code = ErrorCode(report.error_code or ErrorCode.upstream_failed)
        if report.refunded:
            task.charge = Charge.refunded
        self.fail(session, task, Failure(code, report.message, report.code), now, via)

    def _recheck_audio(self, session: Session, task: Task, now: datetime, via: ResolvedBy) -> None:
        if via is not ResolvedBy.poll:
            # Repeats of a callback must not use up the looks.
            schedule_poll(session, task, now)
            return
        task.audio_checks += 1
        looked_for = now - (task.submitted_at or task.created_at)
        if task.audio_checks <= MAX_AUDIO_CHECKS or looked_for < MAX_AUDIO_CHECKS * self._settings.poll_every:
            return
        if task.clips:
            self.end(session, task, S.succeeded, now, via)
            return
        message = "The upstream said that the sound is ready, but no audio appeared."
        self.fail(session, task, Failure(ErrorCode.audio_missing, message), now, via)


def schedule_poll(session: Session, task: Task, now: datetime) -> None:
    """What a callback leaves open, a poll answers; callbacks that repeat do not have it asked more often."""
    soon = now + MIN_POLL_INTERVAL
    task.due_at = min(task.due_at or soon, soon)
    notify_on_commit(session, POLLS)
