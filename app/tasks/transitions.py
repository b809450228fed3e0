"""Which step a task may take next, what each step is called when it is told, and why a task fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.enums import ErrorCode, EventType, TaskStatus

S = TaskStatus

# A queued task can already be generating: the upstream may have said that it refused a submit and yet have taken it.
NEXT: Mapping[S, frozenset[S]] = {
    S.queued: frozenset({S.submitting, S.generating, S.failed, S.canceled}),
    S.submitting: frozenset({S.queued, S.unconfirmed, S.generating, S.failed, S.canceled}),
    # Back into the queue only with the answer in hand, late as it is, that the upstream made nothing.
    S.unconfirmed: frozenset({S.queued, S.generating, S.failed, S.canceled}),
    S.generating: frozenset({S.succeeded, S.failed, S.canceled}),
    S.succeeded: frozenset(),
    S.failed: frozenset(),
    S.canceled: frozenset(),
}

# What we gave up on without being told by the upstream, a late success brings back.
REVIVABLE = frozenset({ErrorCode.outcome_unknown, ErrorCode.deadline_exceeded})

FINAL = frozenset(status for status, following in NEXT.items() if not following)

# A submit on its way, and its way back into the queue, are seen in the task but not told.
EVENT_BY_STATUS: Mapping[S, EventType] = {
    S.unconfirmed: EventType.task_unconfirmed,
    S.generating: EventType.task_submitted,
    S.succeeded: EventType.task_succeeded,
    S.failed: EventType.task_failed,
    S.canceled: EventType.task_canceled,
}


def can_move(current: TaskStatus, new: TaskStatus) -> bool:
    """
    Whether a task may take this step.

    Reports repeat, arrive late, and arrive out of order. A step that cannot be
    taken is old news, not an error.
    """
    return new in NEXT[current]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task fails, in our word and the upstream's."""

    code: ErrorCode
    message: str | None
    upstream_code: int | None = None
