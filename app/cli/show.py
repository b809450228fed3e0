"""What `soundpost tasks show` reads and prints: a task, why it waits, and all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.auth.api_keys import list_keys
from app.auth.callers import OPERATOR
from app.cli.output import age, print_facts, print_table, timestamp, written
from app.config import Settings
from app.enums import TaskStatus
from app.models import Callback, Clip, Delivery, DeliveryAttempt, Task
from app.services import Services
from app.tasks.event_schemas import EventRead
from app.tasks.schedule import deadline_of
from app.tasks.schemas import TaskRead, read_task
from app.upstream.hold import EXPLANATIONS, Hold, current_hold
from app.webhooks.schemas import AttemptRead, read_delivery

MAX_EVENTS = 1_000
MAX_DELIVERIES = 100
MAX_ATTEMPTS = 200
SHORT = "%m-%d %H:%M:%S"
S = TaskStatus


@dataclass(frozen=True, slots=True)
class Received:
    """A stored callback without its headers and body."""

    id: str
    received_at: datetime
    outcome: str
    size: int


@dataclass(frozen=True, slots=True)
class Details:
    """A task with all that belongs to it, as it stood at `now`."""

    task: TaskRead
    row: Task
    key: str
    now: datetime
    hold: Hold | None
    deadline: datetime | None
    events: Sequence[EventRead]
    callbacks: Sequence[Received]
    deliveries: Sequence[tuple[Delivery, Sequence[DeliveryAttempt]]]

    def waits(self) -> str | None:
        """Why the task is where it is; None if nothing is to come."""
        due = age(self.row.due_at, self.now) if self.row.due_at else None
        match self.task.status:
            case S.queued if self.hold is not None:
                return f"the queue is held for {age(self.hold.since, self.now)}: {EXPLANATIONS[self.hold.reason]}"
            case S.queued if due and due.startswith("in "):
                return f"its submit is tried again {due}, after {self.row.attempts} attempts"
            case S.queued:
                return "it is due: a worker takes it when the upstream's rate has room"
            case S.submitting:
                return f"its POST is under way; without an answer it is unconfirmed {due}"
            case S.unconfirmed:
                return "the answer to its POST is lost: a callback adopts it, or it fails at the deadline"
            case S.generating:
                return f"the upstream is working on it: a callback ends it, or the next poll, {due}"
        return f"it has ended, and is polled once more {due}: the upstream may have more of it" if due else None

    def as_json(self) -> dict[str, Any]:
        """The task as REST shows it, and what only operators see."""
        shown = self.task.model_dump(mode="json")
        for clip, row in zip(shown["clips"], self.row.clips, strict=True):
            clip["archive"] = _archive(row)
        return {
            **shown,
            "key": self.key,
            "posts": self.row.posts,
            "waits": self.waits(),
            "due_at": timestamp(self.row.due_at),
            "deadline": timestamp(self.deadline),
            "upstream_calls": self.row.upstream_calls or [],
            "events": [event.model_dump(mode="json") for event in self.events],
            "callbacks": [
                {"id": each.id, "received_at": timestamp(each.received_at), "outcome": each.outcome, "size": each.size}
                for each in self.callbacks
            ],
            "deliveries": [_delivery(delivery, attempts) for delivery, attempts in self.deliveries],
        }


async def read_details(services: Services, task_id: str) -> Details:
    """Read a task with all that belongs to it. Raises NotFound."""
    row = await services.tasks.get_row(OPERATOR, task_id)
    events = await services.tasks.list_events(OPERATOR, task_id, 0, MAX_EVENTS)
    found = await services.webhooks.list_deliveries(OPERATOR, {"task_id": task_id}, None, MAX_DELIVERIES)
    attempts = [await services.webhooks.list_attempts(OPERATOR, each.id, None, MAX_ATTEMPTS) for each in found]
    callbacks = await _read_callbacks(services, task_id)
    async with services.database.reads() as session:
        return Details(
            task=read_task(row, await services.waiters.positions.read(session, [row]), services.signed_urls),
            row=row,
            key=next(key.name for key in await list_keys(session) if key.id == row.api_key_id),
            now=await services.database.now(session),
            hold=await current_hold(session, services.settings.upstream_fingerprint),
            deadline=_deadline(row, services.settings),
            events=[EventRead.model_validate(event) for event in events],
            callbacks=callbacks,
            deliveries=[*zip(found, attempts, strict=True)][::-1],
        )


async def _read_callbacks(services: Services, task_id: str) -> list[Received]:
    read, after, is_more = list[Received](), None, True
    while is_more:
        page, is_more = await services.tasks.list_callbacks(OPERATOR, task_id, after, MAX_EVENTS)
        read += [_received(callback) for callback in page]
        after = (page[-1].received_at, page[-1].id) if page else None
    return read


def _received(callback: Callback) -> Received:
    return Received(callback.id, callback.received_at, callback.outcome, len(callback.body))


def _deadline(row: Task, settings: Settings) -> datetime | None:
    return deadline_of(row, settings) if row.status in (S.generating, S.unconfirmed) else None


def _archive(clip: Clip) -> dict[str, Any]:
    return {
        "attempts": clip.attempts,
        "due_at": timestamp(clip.due_at),
        "error": clip.archive_error,
        "given_up_at": timestamp(clip.given_up_at),
    }


def _delivery(delivery: Delivery, attempts: Sequence[DeliveryAttempt]) -> dict[str, Any]:
    listed = [AttemptRead.model_validate(each).model_dump(mode="json") for each in attempts]
    return {**read_delivery(delivery).model_dump(mode="json"), "attempts_made": listed}


def print_task(found: Details) -> None:
    """Print a task for people."""
    now, row = found.now, found.row
    print_facts(_facts(found))
    if row.clips:
        clips = ((c.index, c.title, c.duration and f"{c.duration:.1f} s", _archive_state(c, now)) for c in row.clips)
        print_table(("CLIP", "TITLE", "LENGTH", "OUR COPY"), clips, heading="Clips")
    if row.upstream_calls:
        names = "started_at", "kind", "duration_ms", "outcome"
        calls = ([call.get(name) for name in names] for call in row.upstream_calls)
        print_table(("STARTED", "CALL", "MS", "OUTCOME"), calls, heading="Calls of the upstream")
    if found.callbacks:
        heard = ((each.id, f"{each.received_at:{SHORT}}", each.size, each.outcome) for each in found.callbacks)
        print_table(("CALLBACK", "AT", "BYTES", "OUTCOME"), heard, heading="Callbacks")
    if found.deliveries:
        print_table(("DELIVERY", "RESULT"), _delivery_rows(found.deliveries, now), heading="Deliveries")
    happened = ((f"{event.created_at:{SHORT}}", event.version, event.type) for event in found.events)
    print_table(("AT", "VERSION", "EVENT"), happened, heading="Events, in UTC")


def _facts(found: Details) -> Iterator[tuple[str, object]]:
    task, row, now = found.task, found.row, found.now
    yield "Task", task.id
    yield "Key", found.key
    yield "Status", f"{task.status}" + (f", place {task.queue_position} in the queue" if task.queue_position else "")
    yield "Waits", found.waits()
    yield "Next due", written(row.due_at, now)
    yield "Deadline", written(found.deadline, now)
    if task.error:
        yield "Error", ": ".join(filter(None, (task.error.code, task.error.message)))
        yield "Upstream code", task.error.upstream_code
    yield "Resolved by", task.resolved_by
    yield "Posts", f"{row.posts}, charge {task.charge}"
    yield "Upstream id", task.upstream_task_id
    yield "Prompt", task.prompt
    yield "Sound", _sound(task)
    yield "Metadata", " ".join(f"{name}={value}" for name, value in task.metadata.items())
    yield "Webhook URL", task.webhook_url
    for name in ("created_at", "submitted_at", "completed_at"):
        yield name.removesuffix("_at").capitalize(), written(getattr(task, name), now)


def _sound(task: TaskRead) -> str:
    tempo = f"{task.sound_tempo} BPM" if task.sound_tempo else ""
    wishes = "loop" if task.sound_loop else "", "lyrics" if task.grab_lyrics else ""
    return ", ".join(filter(None, (task.model, f"key {task.sound_key}", tempo, *wishes)))


def _archive_state(clip: Clip, now: datetime) -> str:
    if clip.archived_at:
        return f"{clip.content_type}, {clip.size} bytes, {age(clip.archived_at, now)} ago"
    if clip.given_up_at:
        return f"given up: {clip.archive_error}"
    problem = f", the last problem was: {clip.archive_error}" if clip.archive_error else ""
    return f"due {age(clip.due_at, now) or 'never'}, {clip.attempts} attempts{problem}"


def _delivery_rows(
    deliveries: Sequence[tuple[Delivery, Sequence[DeliveryAttempt]]], now: datetime
) -> Iterator[tuple[str, str]]:
    for delivery, attempts in deliveries:
        next_try = f", next attempt {age(delivery.due_at, now)}" if delivery.due_at else ""
        yield delivery.id, f"{delivery.event_type} {delivery.status}{next_try}"
        for number, attempt in enumerate(attempts, 1):
            answer = f": {attempt.response}" if attempt.response else ""
            result = f"{attempt.status_code or attempt.error} in {attempt.duration_ms} ms{answer}"
            yield f"  attempt {number} at {attempt.attempted_at:{SHORT}}", result
