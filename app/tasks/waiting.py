"""Waiting for news of a task: as long as the caller prefers, without a database connection, whatever gets lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import ceil
from statistics import median
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Header, Response
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema
from starlette.types import Receive, Scope, Send

from app.database.engine import TRANSIENT, Database, Session
from app.database.wakeups import Wakeups
from app.errors import AppError, NotFound
from app.signed_urls import SignedUrls
from app.tasks import repository
from app.tasks.schemas import TaskRead, read_task
from app.tasks.transitions import FINAL
from app.web.deferred import DeferredResponse
from app.web.negotiation import preferred_wait
from app.web.provided import provided

log = structlog.get_logger()
Answer = TypeVar("Answer")

# How long after its deadline a wait may still look at the task before it answers what it saw last.
LAST_LOOK = 0.5
# A wake-up that got lost costs a waiter so many seconds.
CHECK_EVERY = 0.8
# Many may be woken at once; they leave the other connections to those who have not been served yet.
LOOKS_AT_ONCE = 4
LOOK_TIMEOUT = 5.0
ESTIMATE_FRESH_FOR = timedelta(seconds=10)
# Seconds: what is said before any task has succeeded, and the most that is said afterwards.
DEFAULT_RETRY_AFTER = 5
MAX_RETRY_AFTER = 300


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller prefers to wait; `until` is on the event loop's clock."""

    seconds: int
    until: float


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """A task as it was read, ready to be sent: a wait keeps nothing larger."""

    task_id: str
    version: int
    is_final: bool
    body: bytes


class Waiters:
    """Everybody in this process who waits for news of a task."""

    # After this time without an event, a stream sends a comment. Many proxies close what is silent for 30 s or more.
    keep_alive = timedelta(seconds=15)

    def __init__(self, database: Database, wakeups: Wakeups, signed_urls: SignedUrls) -> None:
        self.wakeups = wakeups
        self._database, self._signed_urls = database, signed_urls
        self._turn = asyncio.Semaphore(LOOKS_AT_ONCE)

    def answer(
        self,
        snapshot: TaskSnapshot,
        wait: Wait | None,
        is_awaited: Callable[[TaskSnapshot], bool],
        answer: Callable[[TaskSnapshot], Response],
    ) -> Response:
        """
        Answer once the task is as awaited, or as it stands when the wait ends.

        A stop of the process, and a caller who hangs up, end the wait with what was
        seen last; so does a database that is away at the end.
        """
        if wait is None:
            return answer(snapshot)

        async def answer_awaited(scope: Scope, receive: Receive, send: Send) -> None:
            response = answer(await self._wait(snapshot, wait, is_awaited, receive))
            response.headers["Preference-Applied"] = f"wait={wait.seconds}"
            await response(scope, receive, send)

        return DeferredResponse(answer_awaited)

    async def _wait(
        self, snapshot: TaskSnapshot, wait: Wait, is_awaited: Callable[[TaskSnapshot], bool], receive: Receive
    ) -> TaskSnapshot:
        clock = asyncio.get_running_loop().time
        # What happened between the look at the task and this subscription, the next check finds.
        with self.wakeups.subscribe(snapshot.task_id) as subscription:
            while not is_awaited(snapshot) and (left := wait.until - clock()) > 0:
                subscription.version = snapshot.version
                await subscription.wait(left, partial(wait_for_disconnect, receive))
                if subscription.is_closed:
                    break
                snapshot = await self._look_again(snapshot, wait.until)
        return snapshot

    async def look(self, query: Callable[[Session], Awaitable[Answer]]) -> Answer:
        """Ask the database, in one's turn and in a transaction that ends with the answer."""
        async with self._turn, asyncio.timeout(LOOK_TIMEOUT), self._database.reads() as session:
            return await query(session)

    @asynccontextmanager
    async def checked(self) -> AsyncIterator[None]:
        """Wake those whose wake-up was lost, as long as the block lasts."""
        checking = asyncio.create_task(self._keep_checking())
        try:
            yield
        finally:
            checking.cancel()
            with suppress(asyncio.CancelledError):
                await checking

    async def _look_again(self, snapshot: TaskSnapshot, until: float) -> TaskSnapshot:
        look = self.look(partial(_see, task_id=snapshot.task_id, signed_urls=self._signed_urls))
        try:
            async with asyncio.timeout_at(until + LAST_LOOK):
                # Who leaves does not take the query along: cancelling it would cost the connection.
                return await asyncio.shield(look)
        except TRANSIENT:
            return snapshot

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY)
            try:
                await self._check()
            except TRANSIENT as error:
                log.warning("waits_not_checked", error=type(error).__name__)

    async def _check(self) -> None:
        """One query for all: a task whose version its waiter has not seen, or that is gone, rings."""
        watched = self.wakeups.subscriptions()
        if not watched:
            return
        task_ids = {task_id for task_id, _ in watched}
        async with self._database.reads() as session:
            versions = await repository.read_versions(session, task_ids)
        for task_id, subscription in watched:
            if subscription.version != versions.get(task_id):
                subscription.notify()


def snapshot_of(task: TaskRead) -> TaskSnapshot:
    """What is kept of a task that was read."""
    return TaskSnapshot(task.id, task.version, task.status in FINAL, task.model_dump_json().encode())


# Client generators support no header that is sent several times.
PreferHeader = Annotated[
    list[str] | SkipJsonSchema[None],
    WithJsonSchema({"type": "string", "examples": ["wait=30"]}),
    Header(
        alias="Prefer",
        description="`wait=n` (RFC 7240) delays the response until the task is as awaited, by at most n seconds (up to"
        " 60).",
    ),
]


async def read_wait(prefer: PreferHeader = None) -> Wait | None:
    """The wait that a request prefers, counted from its arrival."""
    seconds = preferred_wait(prefer or ())
    return None if seconds is None else Wait(seconds, asyncio.get_running_loop().time() + seconds)


WaitDep = Annotated[Wait | None, Depends(read_wait)]
WaitersDep = Annotated[Waiters, provided(Waiters)]


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the caller is gone."""
    # What is still received of a request that was understood already may yet be refused.
    with suppress(AppError):
        while (await receive())["type"] != "http.disconnect":
            pass


async def _see(session: Session, task_id: str, signed_urls: SignedUrls) -> TaskSnapshot:
    task = await repository.find_task(session, task_id)
    if task is None:
        raise NotFound
    return snapshot_of(read_task(task, await repository.queue_positions(session, [task]), signed_urls))


class RetryAfterEstimate:
    """The median of the latest tasks, read rarely."""

    def __init__(self) -> None:
        self._seconds = DEFAULT_RETRY_AFTER
        self._stale_at = 0.0

    @property
    def latest(self) -> int:
        """The estimate as it was last read, in seconds."""
        return self._seconds

    async def seconds(self, session: Session) -> int:
        """After how many seconds a task that is ordered now is probably done."""
        if time.monotonic() >= self._stale_at:
            self._seconds = retry_after(await repository.recent_latencies(session))
            self._stale_at = time.monotonic() + ESTIMATE_FRESH_FOR.total_seconds()
        return self._seconds


def retry_after(latencies: Sequence[timedelta]) -> int:
    """Whole seconds that half of these tasks took at most."""
    if not latencies:
        return DEFAULT_RETRY_AFTER
    return min(max(1, ceil(median(span.total_seconds() for span in latencies))), MAX_RETRY_AFTER)
