"""What happened to a task, as bars in time: pure functions of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Literal
from urllib.parse import urlsplit

from app.console.task_repository import TaskRows
from app.enums import CallbackOutcome, EventType, TaskStatus
from app.models import Clip, Delivery, Task
from app.tasks.transitions import FINAL
from app.upstream.history import CallKind
from app.upstream.types import Outcome

Tone = Literal["good", "bad", "warn", "busy", "soft"]
E, S = EventType, TaskStatus

# Of the picture: its width, and what of it is for all that came long after the rest, such as retried webhooks.
WIDTH, LATER = 1000, 60
# A bar is at least so wide, and a mark exactly; of so many outcomes of a lane is told.
NARROWEST, MARK, MAX_OUTCOMES = 3, 6, 3

OUTCOMES: dict[Outcome, tuple[str, Tone]] = {
    Outcome.ok: ("answered", "good"),
    Outcome.pending: ("the upstream has no record yet", "soft"),
    Outcome.invalid: ("refused: the request is invalid", "bad"),
    Outcome.rejected: ("refused", "bad"),
    Outcome.throttled: ("throttled, nothing was created", "warn"),
    Outcome.held: ("refused, submits are held", "warn"),
    Outcome.ambiguous: ("the answer was lost", "warn"),
    Outcome.not_sent: ("not sent", "warn"),
    Outcome.failed: ("failed", "bad"),
}
CALLBACKS: dict[CallbackOutcome, tuple[str, Tone]] = {
    CallbackOutcome.applied: ("applied", "good"),
    CallbackOutcome.stale: ("said nothing new", "soft"),
    CallbackOutcome.mismatch: ("named another upstream task", "bad"),
    CallbackOutcome.unreadable: ("could not be read", "bad"),
}
ENDS: dict[EventType, tuple[str, Tone]] = {
    E.task_succeeded: ("succeeded", "good"),
    E.task_failed: ("failed", "bad"),
    E.task_canceled: ("canceled", "soft"),
}
# After these a task is queued again.
QUEUED_AGAIN = frozenset({Outcome.throttled, Outcome.held, Outcome.not_sent})


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that took time, or a mark where `end` is `start`. `end` is None while it goes on."""

    lane: str
    label: str
    start: datetime
    end: datetime | None
    outcome: str = ""
    tone: Tone = "busy"

    @property
    def is_mark(self) -> bool:
        """Whether it happened in a moment."""
        return self.end == self.start

    def lasted(self, now: datetime) -> timedelta:
        """How long it took, or has taken until now."""
        return (self.end or now) - self.start


@dataclass(frozen=True, slots=True)
class PlacedBar:
    """A bar with its place in the picture. `is_later`: it stands beyond the end of the scale."""

    bar: Bar
    x: float
    width: float
    is_later: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """The bars of one kind; `took` is how long they lasted together."""

    name: str
    bars: Sequence[PlacedBar]
    took: timedelta

    @property
    def is_open(self) -> bool:
        """Whether something here goes on."""
        return any(placed.bar.end is None for placed in self.bars)

    @property
    def number(self) -> int:
        """How many bars there are, or how many marks if there are only marks."""
        return sum(not placed.bar.is_mark for placed in self.bars) or len(self.bars)

    @property
    def is_of_marks(self) -> bool:
        """Whether all of it happened in moments."""
        return all(placed.bar.is_mark for placed in self.bars)

    @property
    def outcome(self) -> str:
        """What goes on, or else what came of all bars: how often each, where they differ."""
        going_on = [placed.bar for placed in self.bars if placed.bar.end is None]
        said = Counter(bar.outcome for bar in going_on or [placed.bar for placed in self.bars] if bar.outcome)
        if len(said) < 2:
            return "".join(said)
        listed = ", ".join(f"{number} {outcome}" for outcome, number in said.most_common(MAX_OUTCOMES))
        return listed + (" …" if len(said) > MAX_OUTCOMES else "")


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars of a task by lane; the scale is from `begin` to `end`, and `has_later` bars stand beyond it."""

    begin: datetime
    end: datetime
    lanes: Sequence[Lane]
    has_later: bool

    @property
    def scale(self) -> int:
        """The width of the scale."""
        return WIDTH - LATER if self.has_later else WIDTH

    @property
    def bars(self) -> list[Bar]:
        """All bars in the order of time."""
        return sorted((placed.bar for lane in self.lanes for placed in lane.bars), key=attrgetter("start"))


def timeline_of(rows: TaskRows) -> Timeline:
    """The timeline of a task."""
    task, now = rows.task, rows.now
    bars = list(bars_of(rows))
    core = max(task.completed_at or now, task.created_at + timedelta(seconds=1))
    # What follows within as much time again still belongs to the scale.
    until = core + (core - task.created_at)
    end = max([core, *(bar.end or now for bar in bars if (bar.end or now) <= until)])
    later = sorted(bar.start for bar in bars if bar.start > end)
    scale = WIDTH - LATER if later else WIDTH

    def place(bar: Bar) -> PlacedBar:
        if bar.start > end:
            rank = later.index(bar.start) / len(later)
            return PlacedBar(bar, round(scale + 8 + rank * (LATER - 8 - MARK), 1), MARK, is_later=True)
        span = end - task.created_at
        x = max(0.0, (bar.start - task.created_at) / span) * scale
        until_x = min(1.0, ((bar.end or now) - task.created_at) / span) * scale
        width = MARK if bar.is_mark else max(NARROWEST, until_x - x)
        return PlacedBar(bar, round(min(x, scale - width), 1), round(width, 1))

    # Lanes in the order of their first bars as they are made; the sort is stable.
    names = list(dict.fromkeys(bar.lane for bar in bars))
    by_lane = groupby(sorted(bars, key=lambda bar: names.index(bar.lane)), attrgetter("lane"))
    lanes = [_lane(name, [place(bar) for bar in group], now) for name, group in by_lane]
    return Timeline(task.created_at, end, lanes, bool(later))


def _lane(name: str, bars: Sequence[PlacedBar], now: datetime) -> Lane:
    return Lane(name, bars, sum((placed.bar.lasted(now) for placed in bars), timedelta()))


def bars_of(rows: TaskRows) -> Iterator[Bar]:
    """Every bar of a task, lane by lane."""
    for bars in (_queue, _hold, _submits, _phases, _callbacks, _polls, _archive, _deliveries):
        yield from bars(rows)


@dataclass(frozen=True, slots=True)
class _Call:
    start: datetime
    end: datetime
    outcome: Outcome
    code: int | None

    def bar(self, lane: str, label: str) -> Bar:
        said, tone = OUTCOMES[self.outcome]
        code = "" if self.code in (None, 200) else f" (code {self.code})"
        return Bar(lane, label, self.start, self.end, said + code, tone)


def calls_of(task: Task, kind: CallKind) -> list[_Call]:
    """The calls of one kind that were kept of a task."""
    found = []
    for call in task.upstream_calls or ():
        if call["kind"] == kind:
            start = datetime.fromisoformat(call["started_at"])
            end = start + timedelta(milliseconds=call["duration_ms"])
            found.append(_Call(start, end, Outcome(call["outcome"]), call.get("code")))
    return found


def _queue(rows: TaskRows) -> Iterator[Bar]:
    task = rows.task
    since: datetime | None = task.created_at
    label, said = "Waits in the queue", ""
    for call in calls_of(task, CallKind.submit):
        if since is not None:
            yield Bar("Queue", label, since, max(since, call.start), said, "soft")
        is_queued_again = call.outcome in QUEUED_AGAIN
        since, label, said = call.end if is_queued_again else None, "Waits again", OUTCOMES[call.outcome][0]
    if since is None:
        return
    # A task that is queued has no submit, and one that ended there never had one.
    end = task.submitted_at or (task.completed_at if task.status in FINAL else None)
    yield Bar("Queue", label, since, None if task.status is S.queued else max(since, end or rows.now), said, "soft")


def _hold(rows: TaskRows) -> Iterator[Bar]:
    if rows.hold is not None:
        since = max(rows.hold.since, rows.task.created_at)
        yield Bar("Held", "Submits are held", since, None, rows.hold.reason.value.replace("_", " "), "warn")


def _submits(rows: TaskRows) -> Iterator[Bar]:
    task, calls = rows.task, calls_of(rows.task, CallKind.submit)
    for number, call in enumerate(calls, 1):
        yield call.bar("Submit", f"Submit {number}")
    if task.submitted_at is None:
        return
    if task.status is S.submitting:
        yield Bar("Submit", f"Submit {len(calls) + 1}", task.submitted_at, None, "the answer is awaited")
    elif task.was_unconfirmed and not any(call.end > task.submitted_at for call in calls):
        lost = (event.created_at for event in rows.events if event.type is E.task_unconfirmed)
        end = max(task.submitted_at, next(lost, task.submitted_at))
        yield Bar("Submit", f"Submit {len(calls) + 1}", task.submitted_at, end, "its process died", "warn")


def _phases(rows: TaskRows) -> Iterator[Bar]:
    """While nobody knew whether the upstream has the task, and while it had it."""
    unconfirmed = generating = None
    for event in rows.events:
        if event.type is E.task_unconfirmed:
            unconfirmed = event.created_at
        elif event.type in (E.task_submitted, E.task_revived) or event.type in ENDS:
            said, tone = ENDS.get(event.type, ("adopted", "good"))
            if unconfirmed is not None:
                yield Bar("Unconfirmed", "Waits to be adopted", unconfirmed, event.created_at, said, tone)
            if generating is not None:
                yield Bar("Upstream", "The upstream works", generating, event.created_at, said, tone)
            unconfirmed, generating = None, None if event.type in ENDS else event.created_at
    task = rows.task
    if unconfirmed is not None:
        is_open = task.status is S.unconfirmed
        said = "" if is_open else "proved not to be there"
        yield Bar("Unconfirmed", "Waits to be adopted", unconfirmed, None if is_open else task.updated_at, said, "warn")
    if generating is not None:
        yield Bar("Upstream", "The upstream works", generating, task.completed_at)


def _callbacks(rows: TaskRows) -> Iterator[Bar]:
    for callback in rows.callbacks:
        said, tone = CALLBACKS[callback.outcome]
        yield Bar("Callbacks", "Callback", callback.received_at, callback.received_at, said, tone)


def _polls(rows: TaskRows) -> Iterator[Bar]:
    for call in calls_of(rows.task, CallKind.poll):
        yield call.bar("Polls", "Poll")


def _archive(rows: TaskRows) -> Iterator[Bar]:
    for clip in rows.task.clips:
        yield _audio(clip)
        if clip.image_archived_at is not None:
            at = clip.image_archived_at
            yield Bar(f"Clip {clip.index}", f"Cover of clip {clip.index}", at, at, "stored", "good")


def _audio(clip: Clip) -> Bar:
    lane, label = f"Clip {clip.index}", f"Download of clip {clip.index}"
    if clip.archived_at is not None:
        return Bar(lane, label, clip.archive_started_at or clip.created_at, clip.archived_at, "stored", "good")
    if clip.given_up_at is not None:
        return Bar(lane, label, clip.created_at, clip.given_up_at, "given up", "bad")
    return Bar(lane, label, clip.created_at, None, "fails" if clip.archive_error else "is due")


def _deliveries(rows: TaskRows) -> Iterator[Bar]:
    for delivery in rows.deliveries:
        for attempt in rows.attempts.get(delivery.id, ()):
            end = attempt.attempted_at + timedelta(milliseconds=attempt.duration_ms)
            is_taken = attempt.status_code is not None and 200 <= attempt.status_code < 300
            said = f"HTTP {attempt.status_code}" if attempt.status_code else attempt.error or "no answer"
            tone: Tone = "good" if is_taken else "bad"
            yield Bar(_receiver(delivery), f"{delivery.event_type.value} sent", attempt.attempted_at, end, said, tone)


def _receiver(delivery: Delivery) -> str:
    return f"Webhook {urlsplit(delivery.url).hostname or ''}".strip()
