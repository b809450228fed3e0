"""Which transition may follow which, the event of each, and the pure decisions around them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.enums import ErrorCode, EventType, ResolvedBy, TaskStatus
from app.models import Task
from app.upstream.types import Report, Stage

S = TaskStatus

# A queued task can already be generating: the upstream may report that it refused a submit and yet have accepted it.
# After a backup was restored it is unconfirmed: it may have been sent since.
NEXT: Mapping[S, frozenset[S]] = {
    S.queued: frozenset({S.submitting, S.unconfirmed, S.generating, S.failed, S.canceled}),
    S.submitting: frozenset({S.queued, S.unconfirmed, S.generating, S.failed, S.canceled}),
    # Queued again only by a late response which proves that the upstream created nothing.
    S.unconfirmed: frozenset({S.queued, S.generating, S.failed, S.canceled}),
    S.generating: frozenset({S.succeeded, S.failed, S.canceled}),
    S.succeeded: frozenset(),
    S.failed: frozenset(),
    S.canceled: frozenset(),
}

# Failures that we decided without a report of the upstream; a late success revives the task.
REVIVABLE = frozenset({ErrorCode.outcome_unknown, ErrorCode.deadline_exceeded})

FINAL = frozenset(status for status, following in NEXT.items() if not following)

# `submitting` and `queued` raise the task's version, but have no event.
EVENT_BY_STATUS: Mapping[S, EventType] = {
    S.unconfirmed: EventType.task_unconfirmed,
    S.generating: EventType.task_submitted,
    S.succeeded: EventType.task_succeeded,
    S.failed: EventType.task_failed,
    S.canceled: EventType.task_canceled,
}


def can_move(current: TaskStatus, new: TaskStatus) -> bool:
    """
    Whether this transition is allowed.

    Reports repeat, arrive late, and arrive out of order. One whose transition is not
    allowed is stale, not an error.
    """
    return new in NEXT[current]


def is_about_another(task: Task, report: Report) -> bool:
    """Whether a report names an upstream task that is not this task's."""
    named, known = report.upstream_task_id, task.upstream_task_id
    return named is not None and known is not None and named != known


def is_claim(report: Report, via: ResolvedBy) -> bool:
    """Whether a callback says that a task is over, which a poll must repeat where callbacks are not trusted."""
    return via is ResolvedBy.callback and report.stage is not Stage.running


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task fails, in our code and the upstream's."""

    code: ErrorCode
    message: str | None
    upstream_code: int | None = None


# Why a task fails at its deadline, by what it waited for.
EXPIRIES: Mapping[S, Failure] = {
    S.unconfirmed: Failure(
        ErrorCode.outcome_unknown,
        "The submit's answer was lost and no callback came: the upstream may or may not have taken it.",
    ),
    S.generating: Failure(ErrorCode.deadline_exceeded, "The upstream took the task and did not finish it in time."),
}
NO_AUDIO = Failure(ErrorCode.audio_missing, "The upstream said that the sound is ready, but no audio appeared.")
GIVEN_UP = Failure(ErrorCode.outcome_unknown, "An operator gave up on this task.")
# What is read of the upstream's own reports as an id.
_UPSTREAM_ID = re.compile("[A-Za-z0-9_-]{1,200}")


class CannotResolve(Exception):
    """The task cannot take the transition that an operator has asked for."""


def check_resolution(task: Task, status: TaskStatus, upstream_task_id: str | None) -> None:
    """Raise CannotResolve unless an operator may set a task to this status."""
    is_revivable = task.status is S.failed and task.error_code in REVIVABLE
    lacks = {
        S.generating: " without --upstream-task-id" if upstream_task_id is None else "",
        S.succeeded: "" if task.clips else " without clips",
        S.failed: "",
        S.canceled: "",
    }
    can_be = can_move(task.status, status) or (is_revivable and status is S.generating)
    if not can_be or lacks.get(status, " by hand"):
        raise CannotResolve(f"A task that is {task.status} cannot be made {status}{lacks.get(status, '')}.")
    if status is S.generating and not _UPSTREAM_ID.fullmatch(upstream_task_id or ""):
        raise CannotResolve("An id of the upstream has up to 200 letters, digits, hyphens and underscores.")
