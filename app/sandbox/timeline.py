"""When a task reaches each stage, which callbacks it sends when, and how it fails: tables and pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.sandbox.faults import TaskFaults


class Stage(StrEnum):
    """A task's progress, named after the callbacks."""

    pending = "pending"
    text = "text"
    first = "first"
    complete = "complete"


STAGE_FRACTIONS: Mapping[Stage, float] = {Stage.pending: 0.0, Stage.text: 0.4, Stage.first: 0.7, Stage.complete: 1.0}
"""The fraction of the delay after which a task reaches each stage."""

STATUSES: Mapping[Stage, str] = {
    Stage.pending: "PENDING",
    Stage.text: "TEXT_SUCCESS",
    Stage.first: "FIRST_SUCCESS",
    Stage.complete: "SUCCESS",
}


@dataclass(frozen=True)
class Failure:
    """How a task fails: the code and message of its callback, and its status in record-info."""

    code: int
    message: str
    status: str = "GENERATE_AUDIO_FAILED"


@dataclass(frozen=True)
class PlannedCallback:
    """One callback to send."""

    at: float
    """Seconds after the submit."""
    kind: str
    stage: Stage
    """The progress that the callback reports."""


_FAILURES: Mapping[str, Failure] = {
    "failed": Failure(500, "Music generation failed"),
    "failed-as-complete": Failure(500, "Music generation failed"),
    "create-failed": Failure(500, "Failed to create the task", "CREATE_TASK_FAILED"),
    "sensitive": Failure(400, "The prompt contains sensitive words", "SENSITIVE_WORD_ERROR"),
    "refunded": Failure(531, "Music generation failed, the credits were refunded"),
}


def stage_at(elapsed: float, delay: float) -> Stage:
    """The stage of a task this many seconds after its submit."""
    return max((stage for stage in Stage if elapsed >= STAGE_FRACTIONS[stage] * delay), key=STAGE_FRACTIONS.__getitem__)


def has_audio(stage: Stage, take: int) -> bool:
    """Whether this clip has its audio: the first clip has it one stage before the others."""
    return stage is Stage.complete or (stage is Stage.first and take == 0)


def failure_for(faults: TaskFaults) -> Failure | None:
    """The failure of a task with these faults, or None if it succeeds."""
    for name, failure in _FAILURES.items():
        if name in faults:
            code = faults[name]
            return Failure(int(code) if code else failure.code, failure.message, failure.status)
    return None


def plan_callbacks(faults: TaskFaults, delay: float) -> tuple[PlannedCallback, ...]:
    """The callbacks of a task with these faults, in the order in which they are sent."""
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
