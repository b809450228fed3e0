"""Compares our rows and events with the journal of the sandbox, and describes every broken promise."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, select

from app.database.engine import Database
from app.enums import Charge, EventType, TaskStatus
from app.models import Event, Task
from app.tasks.transitions import EVENT_BY_STATUS, FINAL, NEXT, REVIVABLE
from tests.faults.books import Books, disagreements, read_books
from tests.support.api import client_of
from tests.support.sandbox import journal

Record = dict[str, Any]
POLLS_A_SECOND = 3
_AT_ONE_MOMENT = {"sqlite": "SERIALIZABLE", "postgresql": "REPEATABLE READ"}


@dataclass(frozen=True)
class Ledger:
    """Our tasks and their events, the upstream's tasks, and the requests that reached it."""

    tasks: dict[str, Task]
    events: dict[str, list[Event]]
    made: list[Record]
    requests: list[Record]
    books: Books | None = None

    @property
    def submits(self) -> list[Record]:
        return [request for request in self.requests if request["method"] == "POST"]

    @property
    def revivals(self) -> int:
        return sum(event.type is EventType.task_revived for events in self.events.values() for event in events)

    def counts(self) -> dict[str, Any]:
        """The sums of both sides, to be shown."""
        tasks = self.tasks.values()
        return {
            "orders": len(tasks),
            "by status": dict(Counter(task.status.value for task in tasks)),
            "by whom": dict(Counter(task.resolved_by.value if task.resolved_by else "nobody" for task in tasks)),
            "by charge": dict(Counter(task.charge.value for task in tasks)),
            "POSTs that arrived": len(self.submits),
            "accepted by the upstream": len(self.made),
            "attached": sum(_is_attached(self, record) for record in self.made),
            "ever unconfirmed": sum(task.was_unconfirmed for task in tasks),
            "revived": self.revivals,
            "credits used": self.books.used if self.books else None,
            "final events": sum(_final_events(events) for events in self.events.values()),
        }

    def disagreements(self) -> list[str]:
        """Every promise that is broken, in words; none at all is what we want."""
        return [fault for check in _CHECKS for fault in check(self)]


async def read_ledger(database_url: str, sandbox_url: str) -> Ledger:
    """Read both sides."""
    database = Database(database_url)
    try:
        tasks, events = await read_rows(database)
        books = await read_books(database)
    finally:
        await database.close()
    arrived = await journal(sandbox_url, kind="request")
    # Audio and covers come from hosts that have no pace.
    requests = [each for each in arrived if each["path"].startswith("/api/")]
    return Ledger(tasks, events, await made_by(sandbox_url), requests, books)


async def read_rows(database: Database, *where: ColumnElement[bool]) -> tuple[dict[str, Task], dict[str, list[Event]]]:
    """Our side alone: tasks, and their events oldest first."""
    async with database.reads() as session:
        # What is archived meanwhile changes the one or the other.
        await session.connection(execution_options={"isolation_level": _AT_ONE_MOMENT[session.get_bind().dialect.name]})
        tasks = {task.id: task for task in await session.scalars(select(Task).where(*where))}
        events: dict[str, list[Event]] = defaultdict(list)
        of_these = select(Event).join(Task, Task.id == Event.task_id).where(*where)
        for event in await session.scalars(of_these.order_by(Event.task_id, Event.version)):
            events[event.task_id].append(event)
    return tasks, dict(events)


async def has_ended(database_url: str) -> bool:
    """Whether no row is due or in flight any more. Each call opens a connection, so do not poll it in a tight loop."""
    await asyncio.sleep(0.5)
    database = Database(database_url)
    try:
        async with database.reads() as session:
            return await session.scalar(select(Task.id).where(Task.status.not_in(FINAL)).limit(1)) is None
    finally:
        await database.close()


async def unended(database_url: str) -> list[str]:
    """The tasks that are not final, and how far they are."""
    database = Database(database_url)
    try:
        async with database.reads() as session:
            tasks = await session.scalars(select(Task).where(Task.status.not_in(FINAL)))
            return [f"{task.id} is {task.status}, due at {task.due_at}" for task in tasks]
    finally:
        await database.close()


async def made_by(sandbox_url: str) -> list[Record]:
    """Every task that the upstream created and charged, whatever it answered."""
    async with client_of(sandbox_url, None) as client:
        made: list[Record] = (await client.get("/tasks")).raise_for_status().json()
        return made


def most_in_a_window(requests: Sequence[Record], window: timedelta) -> int:
    """The largest number of requests that arrived within any span of this length."""
    times = sorted(request["monotonic"] for request in requests)
    first, most = 0, 0
    for last, time in enumerate(times):
        while time - times[first] >= window.total_seconds():
            first += 1
        most = max(most, last - first + 1)
    return most


def _nothing_is_paid_twice(ledger: Ledger) -> Iterator[str]:
    for task_id, times in Counter(record["caller_task_id"] for record in ledger.made).items():
        if times > 1:
            yield f"{task_id} was accepted {times} times"


def _what_was_made_is_attached_to_one_row(ledger: Ledger) -> Iterator[str]:
    for record in ledger.made:
        if not _is_attached(ledger, record) and not _is_unheard_of(ledger, record):
            yield f"upstream task {record['task_id']} of {record['caller_task_id']} is lost"
    for upstream_task_id, rows in Counter(task.upstream_task_id for task in ledger.tasks.values()).items():
        if upstream_task_id is not None and rows > 1:
            yield f"upstream task {upstream_task_id} is attached to {rows} rows"


def _every_row_is_final(ledger: Ledger) -> Iterator[str]:
    for task in ledger.tasks.values():
        if task.status not in FINAL and task.status is not TaskStatus.unconfirmed:
            yield f"{task.id} is left {task.status}"


def final_tasks_are_final_events(ledger: Ledger) -> Iterator[str]:
    """Whether each task that ended has one final event, and one more for each revival."""
    for task in ledger.tasks.values():
        ends = _final_events(ledger.events[task.id])
        revivals = sum(event.type is EventType.task_revived for event in ledger.events[task.id])
        if ends - revivals != (task.status in FINAL):
            yield f"{task.id} is {task.status} with {ends} final events and {revivals} revivals"


def no_step_goes_back(ledger: Ledger) -> Iterator[str]:
    """Whether the versions of each task's events rise, and the table allows each transition between them."""
    for task in ledger.tasks.values():
        events = ledger.events[task.id]
        versions = [event.version for event in events]
        if versions != sorted(set(versions)) or versions[-1] > task.version:
            yield f"{task.id} has version {task.version} and events {versions}"
        changes = [event for event in events if "status" in event.data]
        for before, event in pairwise(changes):
            if not _may_follow(before, event):
                yield f"{task.id} went from {before.type} to {event.type}"


def _money_agrees(ledger: Ledger) -> Iterator[str]:
    made = {record["caller_task_id"] for record in ledger.made}
    arrived = Counter(submit["caller_task_id"] for submit in ledger.submits)
    for task in ledger.tasks.values():
        impossible = {Charge.none} if task.id in made else {Charge.charged, Charge.refunded}
        if task.charge in impossible:
            yield f"{task.id} is {task.charge}, and the upstream {'has' if task.id in made else 'never had'} it"
        if arrived[task.id] > task.posts:
            yield f"{task.id} counts {task.posts} POSTs, and {arrived[task.id]} arrived"


def _books_agree(ledger: Ledger) -> Iterator[str]:
    if ledger.books is not None:
        yield from disagreements(ledger.books, ledger.tasks, ledger.made)


def _no_task_is_polled_too_often(ledger: Ledger) -> Iterator[str]:
    polls: dict[str, list[Record]] = defaultdict(list)
    for request in ledger.requests:
        if request["path"].endswith("/record-info"):
            polls[request["task_id"]].append(request)
    for upstream_task_id, times in polls.items():
        if (most := most_in_a_window(times, timedelta(seconds=1))) > POLLS_A_SECOND:
            yield f"upstream task {upstream_task_id} was polled {most} times within a second"


_CHECKS = (
    _nothing_is_paid_twice,
    _what_was_made_is_attached_to_one_row,
    _every_row_is_final,
    final_tasks_are_final_events,
    no_step_goes_back,
    _money_agrees,
    _books_agree,
    _no_task_is_polled_too_often,
)


def _is_attached(ledger: Ledger, record: Record) -> bool:
    task = ledger.tasks.get(record["caller_task_id"])
    return task is not None and task.upstream_task_id == record["task_id"]


def _is_unheard_of(ledger: Ledger, record: Record) -> bool:
    """Whether the upstream neither responded nor called back: then the charge of the row is `possible`, and no more."""
    task = ledger.tasks.get(record["caller_task_id"])
    return task is not None and not record["delivered"] and task.charge is Charge.possible


def _final_events(events: Sequence[Event]) -> int:
    return sum(event.type in {EVENT_BY_STATUS[status] for status in FINAL} for event in events)


def _may_follow(before: Event, event: Event) -> bool:
    if event.type is EventType.task_revived:
        return before.type is EventType.task_failed and before.data["error"]["code"] in REVIVABLE
    return TaskStatus(event.data["status"]) in _next_with_event(TaskStatus(before.data["status"]))


def _next_with_event(status: TaskStatus) -> set[TaskStatus]:
    """The states that the next event may have: transitions between queued and submitting have no event."""
    reached, untold = set(NEXT[status]), {TaskStatus.queued, TaskStatus.submitting}
    for _ in untold:
        reached |= {following for passed in reached & untold for following in NEXT[passed]}
    return reached - untold
