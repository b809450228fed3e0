"""Taking in a callback: the message and its effect on the task are one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from app.database.engine import Database, Session
from app.enums import CallbackOutcome, ResolvedBy
from app.errors import NotFound
from app.models import Callback, Task
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.repository import lock_task
from app.upstream.redaction import redact
from app.upstream.suno.reports import read_callback
from app.upstream.types import Report

HIDDEN = frozenset({"authorization", "cookie", "proxy-authorization", "x-webhook-signature"})


async def receive(
    database: Database, lifecycle: TaskLifecycle, task_id: str, headers: Mapping[str, str], body: bytes, *secrets: str
) -> CallbackOutcome:
    """
    Keep an authentic message and apply it; after this returns it is committed. Raises NotFound.

    Secrets that it repeats are not kept.
    """
    report = read_callback(body)
    if report is not None:
        report = replace(report, message=report.message and redact(report.message, *secrets))
    async with database.writes.begin() as session:
        task = await lock_task(session, task_id)
        if task is None:
            raise NotFound
        now = await database.now(session)
        outcome = await _apply(session, lifecycle, task, report, now)
        session.add(
            Callback(
                task_id=task.id,
                received_at=now,
                headers=_presentable(headers, secrets),
                body=redact(body, *secrets),
                outcome=outcome,
            )
        )
    return outcome


async def _apply(
    session: Session, lifecycle: TaskLifecycle, task: Task, report: Report | None, now: datetime
) -> CallbackOutcome:
    if report is None:
        return CallbackOutcome.unreadable
    if is_about_another(task, report):
        return CallbackOutcome.mismatch
    is_news = await lifecycle.apply_report(session, task, report, now, ResolvedBy.callback)
    return CallbackOutcome.applied if is_news else CallbackOutcome.stale


def is_about_another(task: Task, report: Report) -> bool:
    """Whether a report names an upstream task that is not this one's."""
    named, known = report.upstream_task_id, task.upstream_task_id
    return named is not None and known is not None and named != known


def _presentable(headers: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    return {name: "***" if name in HIDDEN else redact(value, *secrets) for name, value in headers.items()}
