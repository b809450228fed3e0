"""Manual resolution of a task, through the normal state transitions."""

from __future__ import annotations

from datetime import datetime

from app.database.engine import Session
from app.enums import ErrorCode, ResolvedBy, TaskStatus
from app.models import Task
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.transitions import REVIVABLE, Failure, can_move

S = TaskStatus


class CannotResolve(Exception):
    """The task cannot take the requested transition."""


async def resolve(
    lifecycle: TaskLifecycle,
    session: Session,
    task: Task,
    status: TaskStatus,
    upstream_task_id: str | None,
    now: datetime,
) -> None:
    """
    Set a locked task to the state that an operator found out. Raises CannotResolve.

    `generating` attaches it to an upstream task, which is then polled. A task that an
    operator fails is still revived by a late success.
    """
    is_revivable = task.status is S.failed and task.error_code in REVIVABLE
    if status is S.generating and upstream_task_id and (is_revivable or can_move(task.status, S.generating)):
        await lifecycle.attach(session, task, upstream_task_id, now)
    elif status is S.succeeded and task.clips and can_move(task.status, S.succeeded):
        lifecycle.finish(session, task, S.succeeded, now, ResolvedBy.operator)
    elif status is S.failed and can_move(task.status, S.failed):
        message = "An operator gave up on this task."
        lifecycle.fail(session, task, Failure(ErrorCode.outcome_unknown, message), now, ResolvedBy.operator)
    elif status is S.canceled and can_move(task.status, S.canceled):
        lifecycle.finish(session, task, S.canceled, now, ResolvedBy.operator)
    else:
        raise CannotResolve(
            f"A task that is {task.status} cannot be made {status}{_needs(task, status, upstream_task_id)}."
        )


def _needs(task: Task, status: TaskStatus, upstream_task_id: str | None) -> str:
    """What the transition needs and the task does not have, as the end of a sentence."""
    if status is S.generating and upstream_task_id is None:
        return " without --upstream-task-id"
    return " without clips" if status is S.succeeded and not task.clips else ""
