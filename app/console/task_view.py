"""What the page of a task says in words: why it waits, what it cost, what callbacks say. Pure functions of its rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from app.config import Rate, Settings
from app.console.task_repository import Pace, StoredCallback, TaskRows
from app.console.timeline import CALLBACKS, OUTCOMES, QUEUED_AGAIN, Tone, calls_of
from app.enums import Charge, DeliveryStatus, TaskStatus
from app.models import Clip, Task
from app.tasks.clips import is_too_late, needs_audio, needs_cover, needs_lyrics
from app.tasks.order_schemas import NOT_STORED, TaskCreate
from app.tasks.schedule import deadline_of
from app.tasks.schemas import MAX_QUEUE_POSITION
from app.tasks.transitions import REVIVABLE
from app.upstream.history import CallKind
from app.upstream.hold import EXPLANATIONS
from app.upstream.types import Report, ReportedClip

S = TaskStatus

# A due task that could be sent is claimed at once where a worker runs.
NO_WORKER_AFTER = timedelta(seconds=15)
NO_WORKER = "look whether `soundpost worker`, or `soundpost serve` without --no-loops, runs and is healthy."
CHARGES: Mapping[Charge, str] = {
    Charge.none: "nothing was charged: nothing was sent, or the upstream provably refused it",
    Charge.possible: "a charge is possible: the answer to the submit is not known",
    Charge.charged: "charged: the upstream accepted it",
    Charge.refunded: "refunded: the upstream gave the credits back",
}
# Callbacks of the upstream grow by half when they are indented.
SHORT, MAX_GROWTH = 4096, 4
HELD: Mapping[str, str] = {
    "no_credits": "The upstream account has no credits.",
    "bad_key": "The upstream refuses the key of this service.",
    "blocked": "The upstream answers with a block page.",
    "unsendable": "No request to the upstream can be sent as this service is set.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a task waits. `at` is when it will not wait any more, or is looked at next; `advice` is for operators."""

    title: str
    detail: str = ""
    at: datetime | None = None
    advice: str = ""
    tone: Tone = "busy"


@dataclass(frozen=True, slots=True)
class CallbackView:
    """A callback as it came, beside what was read from it. `text` is None where the body is too large to be shown."""

    received_at: datetime
    outcome: str
    tone: Tone
    size: int
    text: str | None
    facts: Sequence[tuple[str, str]]


def why_it_waits(rows: TaskRows, settings: Settings) -> list[Reason]:
    """Every reason why a task, its clips or its webhooks are not done yet."""
    reasons: list[Reason] = []
    waits = WAITS.get(rows.task.status)
    if waits is not None:
        reasons += waits(rows, settings)
    elif rows.task.due_at is not None:
        reasons.append(_late_poll(rows.task))
    return [_overdue(reason, rows.now) for reason in (*reasons, *_clips(rows), *_deliveries(rows))]


def _overdue(reason: Reason, now: datetime) -> Reason:
    is_late = reason.at is not None and reason.at < now - NO_WORKER_AFTER
    return replace(reason, advice=NO_WORKER, tone="bad") if is_late else reason


def _queued(rows: TaskRows, settings: Settings) -> Iterator[Reason]:
    task, now, hold, pace = rows.task, rows.now, rows.hold, rows.pace or Pace(0)
    place = _place(rows.position)
    last = next(reversed(calls_of(task, CallKind.submit)), None)
    if task.due_at is None:
        detail = "It goes on where there is room: with the next window, or once others cost less than was reserved."
        yield Reason("It waits for the budget of its key.", detail, advice="give the key a larger budget.", tone="warn")
    elif hold is not None:
        title = f"All submits are held since {hold.since:%H:%M:%S} UTC."
        yield Reason(title, f"{HELD[hold.reason]} {place}", advice=f"{EXPLANATIONS[hold.reason]}.", tone="warn")
    elif task.due_at is not None and task.due_at > now and last is not None and last.outcome in QUEUED_AGAIN:
        yield Reason("It is submitted again later.", f"The last submit: {OUTCOMES[last.outcome][0]}.", task.due_at)
    elif pace.paused_until is not None:
        yield Reason("The upstream asked for a pause.", place, pace.paused_until, tone="warn")
    elif pace.free < (rows.position or 1):
        rate = settings.upstream_rate
        detail = f"{place} {pace.free} of {rate.requests} slots in {_seconds(rate.period)} are free."
        yield Reason("It waits for the upstream's pace.", detail, _turn(rows.position or 1, pace, rate, now))
    elif task.due_at is not None and task.due_at < now - NO_WORKER_AFTER:
        yield Reason("No worker takes it.", f"{place} Slots are free.", advice=NO_WORKER, tone="bad")
    else:
        yield Reason("It is sent in a moment.", place)


def _place(position: int | None) -> str:
    if position is None:
        return ""
    if position >= MAX_QUEUE_POSITION:
        return f"At least {MAX_QUEUE_POSITION - 1} tasks are before it."
    return "It is next in line." if position == 1 else f"It is number {position} in line."


def _turn(position: int, pace: Pace, rate: Rate, now: datetime) -> datetime:
    """When its turn comes at the earliest: each slot sends one task in a period."""
    rounds = -(-(position - pace.free) // rate.requests) - 1
    return max(pace.next_free_at or now, now) + max(rounds, 0) * rate.period


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"


def _submitting(rows: TaskRows, _settings: Settings) -> Iterator[Reason]:
    detail = "If none comes until then, the task is unconfirmed: it is never sent a second time."
    yield Reason("The upstream's answer to the submit is awaited.", detail, rows.task.due_at)


def _unconfirmed(rows: TaskRows, settings: Settings) -> Iterator[Reason]:
    detail = (
        "The answer to the submit was lost, so the upstream may have the task. A callback to its own URL adopts it;"
        " without one it fails at this time. It is never sent a second time."
    )
    advice = "look for the task on the upstream's website; if it is there, resolve it as generating with its id."
    yield Reason("It waits to be adopted.", detail, deadline_of(rows.task, settings), advice, "warn")


def _generating(rows: TaskRows, settings: Settings) -> Iterator[Reason]:
    task = rows.task
    if task.upstream_task_id is None:
        yield Reason("It waits for a callback.", "The upstream gave no id, so it cannot be polled.")
    else:
        yield Reason("The upstream works on it.", "A callback ends this, or the next poll.", task.due_at)
    yield Reason("It fails at its deadline.", "A late success revives it.", deadline_of(task, settings), tone="soft")


WAITS: Mapping[TaskStatus, Callable[[TaskRows, Settings], Iterator[Reason]]] = {
    S.queued: _queued,
    S.submitting: _submitting,
    S.unconfirmed: _unconfirmed,
    S.generating: _generating,
}


def _late_poll(task: Task) -> Reason:
    if task.status is S.succeeded:
        return Reason("A clip has no audio yet.", "The upstream is asked again.", task.due_at, tone="soft")
    is_ours = task.status is S.failed and task.error_code in REVIVABLE
    detail = "It was given up, not refused: a late success revives it." if is_ours else ""
    return Reason("The upstream is still asked about it.", detail, task.due_at, tone="soft")


def _clips(rows: TaskRows) -> Iterator[Reason]:
    for clip in rows.task.clips:
        missing = _missing(clip, rows.task, rows.now)
        if missing and clip.due_at is not None:
            detail = f"Attempt {clip.attempts + 1}."
            problem = f" The last problem: {clip.archive_error}." if clip.archive_error else ""
            tone: Tone = "warn" if clip.archive_error else "busy"
            yield Reason(f"Clip {clip.index}: {missing} not stored yet.", detail + problem, clip.due_at, tone=tone)


def _missing(clip: Clip, task: Task, now: datetime) -> str:
    if needs_audio(clip):
        return "" if is_too_late(clip, now) else "the audio is"
    if needs_cover(clip):
        return "the cover is"
    return "the lyrics are" if needs_lyrics(clip, task) else ""


def _deliveries(rows: TaskRows) -> Iterator[Reason]:
    pending = [delivery for delivery in rows.deliveries if delivery.status is DeliveryStatus.pending]
    failing = [delivery for delivery in pending if delivery.attempts_made]
    if pending:
        title = "A webhook is" if len(pending) == 1 else f"{len(pending)} webhooks are"
        detail = f"{len(failing)} of {len(pending)} failed before." if failing else ""
        at = min((delivery.due_at for delivery in pending if delivery.due_at is not None), default=None)
        yield Reason(f"{title} not delivered yet.", detail, at, tone="warn" if failing else "busy")


def view_callback(callback: StoredCallback, report: Report | None) -> CallbackView:
    """A callback beside its report."""
    said, tone = CALLBACKS[callback.outcome]
    facts = list(facts_of(report)) if report is not None else []
    text = None if callback.body is None else pretty(callback.body)
    return CallbackView(callback.received_at, said, tone, callback.size, text, facts)


def pretty(body: bytes) -> str:
    """A body as text: JSON indented unless that makes it many times as long, what is no text escaped."""
    try:
        text = _indented(json.loads(body), max(SHORT, MAX_GROWTH * len(body)))
    except (ValueError, RecursionError):
        text = None
    if text is None:
        return body.decode("utf-8", "backslashreplace")
    # Half of a character, which JSON can escape, is no text that could be sent.
    return text.encode("utf-8", "backslashreplace").decode()


def _indented(value: object, limit: int) -> str | None:
    """As JSON, or None beyond the limit: the indentation of what is deeply nested grows with its square."""
    parts, length = [], 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        length += len(part)
        if length > limit:
            return None
    return "".join(parts)


def facts_of(report: Report) -> Iterator[tuple[str, str]]:
    """What a report says, field by field, without the fields that it leaves out."""
    for field in fields(report):
        value = getattr(report, field.name)
        if field.name != "clips" and value not in (None, False):
            yield field.name, str(value)
    for number, clip in enumerate(report.clips):
        yield from ((f"clips[{number}].{name}", str(value)) for name, value in _named(clip))


def _named(clip: ReportedClip) -> list[tuple[str, object]]:
    return [(name, value) for name, value in asdict(clip).items() if value is not None]


def parameters_of(task: Task) -> dict[str, Any]:
    """What was ordered, in the words of the API, without what was left to its defaults."""
    stored = [name for name in TaskCreate.model_fields if name not in NOT_STORED | {"metadata"}]
    given = {name: getattr(task, name) for name in stored} | {"metadata": task.labels}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in TaskCreate.model_fields.items()}
    return {name: value for name, value in given.items() if value != defaults[name]}


def curl_of(task: Task, base_url: str) -> str:
    """Commands that do the same by the API, for a shell where KEY holds an API key."""
    key, body = '-H "Authorization: Bearer $KEY"', json.dumps(parameters_of(task), ensure_ascii=False)
    order = f"curl {shlex.quote(f'{base_url}/v1/tasks')} {key} --json {shlex.quote(body)}"
    this = f"{base_url}/v1/tasks/{task.id}"
    return "\n".join((order, f"curl {shlex.quote(this)} {key}", f"curl {shlex.quote(f'{this}/callbacks')} {key}"))
