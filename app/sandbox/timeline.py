"""The life of a task as pure tables: which stage it is in after how long, and which callbacks it sends when."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.sandbox.faults import TaskFaults


class Stage(StrEnum):
    """How far a task has come; the names are those of the callbacks."""

    pending = "pending"
    text = "text"
    first = "first"
    complete = "complete"


STAGE_FRACTIONS: Mapping[Stage, float] = {Stage.pending: 0.0, Stage.text: 0.4, Stage.first: 0.7, Stage.complete: 1.0}
"""The part of the delay after which each stage is reached."""

STATUSES: Mapping[Stage, str] = {
    Stage.pending: "PENDING",
    Stage.text: "TEXT_SUCCESS",
    Stage.first: "FIRST_SUCCESS",
    Stage.complete: "SUCCESS",
}


@dataclass(frozen=True)
class Failure:
    """Why a task fails in the end: as a callback's code and message, and as record-info's status."""

    code: int
    message: str
    status: str = "GENERATE_AUDIO_FAILED"


@dataclass(frozen=True)
class PlannedCallback:
    """One callback to be sent, this many seconds after the submit."""

    at: float
    kind: str
    stage: Stage
    """What the callback shows."""


_FAILURES: Mapping[str, Failure] = {
    "failed": Failure(500, "Music generation failed"),
    "failed-as-complete": Failure(500, "Music generation failed"),
    "create-failed": Failure(500, "Failed to create the task", "CREATE_TASK_FAILED"),
    "sensitive": Failure(400, "The prompt contains sensitive words", "SENSITIVE_WORD_ERROR"),
    "refunded": Failure(531, "Music generation failed, the credits were refunded"),
}


def stage_at(elapsed: float, delay: float) -> Stage:
    """The stage of a task of this age."""
    return max((stage for stage in Stage if elapsed >= STAGE_FRACTIONS[stage] * delay), key=STAGE_FRACTIONS.__getitem__)


def has_audio(stage: Stage, take: int) -> bool:
    """Whether this clip of the task has its audio: the first comes before the others."""
    return stage is Stage.complete or (stage is Stage.first and take == 0)


def failure_for(faults: TaskFaults) -> Failure | None:
    """How a task with these faults fails, or None if it succeeds."""
    for name, failure in _FAILURES.items():
        if name in faults:
            code = faults[name]
            return Failure(int(code) if code else failure.code, failure.message, failure.status)
    return None


def plan_callbacks(faults: TaskFaults, delay: float) -> tuple[PlannedCallback, ...]:
    """The callbacks of a task with these faults, in the order of their sending."""
    if "drop-callbacks" in faults:
        return ()
    steps = [
        PlannedCallback(STAGE_FRACTIONS[stage] * delay, stage.value, stage)
        for stage in (Stage.text, Stage.first, Stage.complete)
    ]
    if failure_for(faults) is not None:
        kind = "complete" if "failed-as-complete" in faults else "error"
        steps = [steps[0], PlannedCallback(delay, kind, Stage.complete)]
    elif "second-callback" in faults:
        steps.insert(2, PlannedCallback(0.85 * delay, "second", Stage.complete))
    if "only-complete" in faults:
        steps = steps[-1:]
    if "reorder-callbacks" in faults:
        steps = [PlannedCallback(delay, step.kind, step.stage) for step in reversed(steps)]
    later = faults.get("delay-callbacks") or 0.0
    times = int(faults.get("repeat-callbacks") or 1)
    return tuple(PlannedCallback(step.at + later, step.kind, step.stage) for step in steps for _ in range(times))
