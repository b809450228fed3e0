"""Recording the events of tasks: each raises the task's version and is published to callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import event as sqlalchemy_event

from app.database.base import new_id
from app.database.engine import Session
from app.database.wakeups import notify_on_commit
from app.enums import EventType, TaskStatus
from app.models import Event, Task
from app.signed_urls import SignedUrls
from app.tasks.payloads import EventPublisher
from app.tasks.transitions import EVENT_BY_STATUS, can_move

log = structlog.get_logger()


class EventRecorder:
    """Writes in the transaction of its caller. `first_attempt_delay` comes before the first attempt of a webhook."""

    def __init__(
        self, signed_urls: SignedUrls, publishers: Sequence[EventPublisher], first_attempt_delay: timedelta
    ) -> None:
        self._signed_urls, self._publishers, self._first_attempt_delay = signed_urls, publishers, first_attempt_delay

    def transition(
        self, session: Session, task: Task, status: TaskStatus, now: datetime, changed: dict[str, Any] | None = None
    ) -> None:
        """Make an allowed transition, and record its event if it has one. Raises AssertionError for any other."""
        if not can_move(task.status, status):
            raise AssertionError(f"no transition leads from {task.status} to {status}")
        task.status = status
        data = {"status": status, "charge": task.charge, **(changed or {})}
        if status in EVENT_BY_STATUS:
            self.record(session, task, EVENT_BY_STATUS[status], now, data)
        else:
            self.bump_version(session, task, now)

    def record(self, session: Session, task: Task, kind: EventType, now: datetime, data: dict[str, Any]) -> None:
        """Insert an event and publish it."""
        self.bump_version(session, task, now)
        event = Event(id=new_id(), task_id=task.id, version=task.version, type=kind, created_at=now, data=data)
        session.add(event)
        if kind is EventType.task_failed:
            _log_failure_on_commit(session, task.id, task.api_key_id, data["error"])
        for publish in self._publishers:
            publish(session, task, event, self._signed_urls, now + self._first_attempt_delay)

    def bump_version(self, session: Session, task: Task, now: datetime) -> None:
        """Raise the version for a change without an event, and notify the waits for this task."""
        task.version += 1
        task.updated_at = now
        notify_on_commit(session, task.id)


def _log_failure_on_commit(session: Session, task_id: str, api_key_id: str, error: Mapping[str, Any]) -> None:
    def write(_: object) -> None:
        log.warning("task_failed", task_id=task_id, api_key_id=api_key_id, **error)

    sqlalchemy_event.listen(session.sync_session, "after_commit", write, once=True)
