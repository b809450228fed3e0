"""Long polling: a request waits for a change of its task without a database connection, even if wake-ups are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema
from starlette.types import Receive, Scope, Send

from app.auth.callers import reading_keys
from app.database.engine import Database
from app.database.failures import TRANSIENT, advice
from app.database.fetching import SharedReads
from app.database.wakeups import Wakeups
from app.errors import AppError, NotFound
from app.signed_urls import SignedUrls
from app.tasks import repository
from app.tasks.event_schemas import History
from app.tasks.queue.positions import QueuePositions
from app.tasks.schemas import TaskRead, read_task
from app.tasks.transitions import FINAL
from app.web.deferred import DeferredResponse, arrived_at
from app.web.negotiation import matches, preferred_wait
from app.web.provided import provided

log = structlog.get_logger()
Value = TypeVar("Value")
# How a task looks to its reader: waits of equal views share what they read.
View = Callable[[TaskRead], "TaskSnapshot"]

# How long after its end a wait may still read the task; after that it answers with the version that it read last.
LAST_READ_TIMEOUT = timedelta(milliseconds=500)
# A lost wake-up delays a waiter by this much.
CHECK_INTERVAL = timedelta(milliseconds=800)
# Many waiters may be woken at once: they leave the other connections of the pool to new requests.
MAX_CONCURRENT_READS = 4
READ_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller prefers to wait: in seconds, and until when on the event loop's clock."""

    seconds: int
    until: float


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """A task as read, with its JSON body: all that a wait holds in memory."""

    task_id: str
    version: int
    is_final: bool
    body: bytes

    @property
    def etag(self) -> str:
        """The entity tag of this version (RFC 9110 §8.8.3): weak, because signed links differ with every read."""
        return f'W/"{self.version}"'


class Waiters:
    """The requests of this process that wait for a change of a task, and the reads that they share."""

    # After this time without an event, a stream sends a comment. Many proxies close what is silent for 30 s or more.
    keep_alive = timedelta(seconds=15)
    # A stream goes on for so long after its key was revoked or expired; a wait ends within a minute anyway.
    check_keys_every = timedelta(seconds=20)

    def __init__(
        self, database: Database, wakeups: Wakeups, signed_urls: SignedUrls, positions: QueuePositions
    ) -> None:
        self.wakeups, self._database, self._signed_urls = wakeups, database, signed_urls
        self.positions = positions
        self._reads = SharedReads(MAX_CONCURRENT_READS)

    def respond(
        self,
        snapshot: TaskSnapshot,
        wait: Wait | None,
        is_awaited: Callable[[TaskSnapshot], bool],
        respond: Callable[[TaskSnapshot], Response],
        view: View | None = None,
    ) -> Response:
        """
        The response to a task as it is once `is_awaited` holds, or when the wait ends.

        A stop of the process or a disconnected client ends the wait early. If the
        database is unreachable at the end, the response shows the version read last.
        """
        if wait is None:
            return respond(snapshot)

        async def respond_later(scope: Scope, receive: Receive, send: Send) -> None:
            response = respond(await self._wait(snapshot, wait, is_awaited, view or snapshot_of, receive))
            applied = response.headers.get("Preference-Applied")
            waited = f"wait={wait.seconds}"
            response.headers["Preference-Applied"] = f"{applied}, {waited}" if applied else waited
            await response(scope, receive, send)

        return DeferredResponse(respond_later)

    def respond_to_read(
        self, snapshot: TaskSnapshot, wait: Wait | None, if_none_match: str | None, view: View | None = None
    ) -> Response:
        """The response to a read of a task, which waits for another version than the client's, or else for the end."""

        def is_awaited(task: TaskSnapshot) -> bool:
            return task.is_final if if_none_match is None else not matches(if_none_match, task.etag)

        return self.respond(snapshot, wait, is_awaited, partial(respond_with, if_none_match), view)

    async def _wait(
        self,
        snapshot: TaskSnapshot,
        wait: Wait,
        is_awaited: Callable[[TaskSnapshot], bool],
        view: View,
        receive: Receive,
    ) -> TaskSnapshot:
        clock = asyncio.get_running_loop().time
        # A change between the first read and this subscription is found by the next check.
        with self.wakeups.subscribe(snapshot.task_id) as subscription:
            while not is_awaited(snapshot) and (left := wait.until - clock()) > 0:
                subscription.version = snapshot.version
                await subscription.wait(left, partial(wait_for_disconnect, receive))
                if subscription.is_closed:
                    break
                snapshot = await self._read_again(snapshot, wait.until, view)
        return snapshot

    async def read_history(self, task_id: str, after: int, render: Callable[[int, History], Value]) -> Value | None:
        """A task's state and its events after this version, rendered; None for a deleted task. Raises TRANSIENT."""

        async def read() -> Value | None:
            async with self._database.reads() as session:
                history = await repository.read_history(session, task_id, after)
            return None if history is None else render(after, history)

        return await self._shared((task_id, after, render), read)

    @asynccontextmanager
    async def checked(self) -> AsyncIterator[None]:
        """Check inside the block for changes whose wake-up was lost, and wake their waiters."""
        checking = asyncio.create_task(self._keep_checking())
        try:
            yield
        finally:
            checking.cancel()
            with suppress(asyncio.CancelledError):
                await checking

    async def _shared(self, key: Hashable, query: Callable[[], Awaitable[Value]]) -> Value:
        """
        The result of one query for all who ask for the same `key` before it begins.

        A commit wakes all waiters of its task in one turn of the event loop: they share
        one read and one rendering, which show whatever woke them.
        """

        async def read() -> Value:
            async with asyncio.timeout(READ_TIMEOUT.total_seconds()):
                return await query()

        return await self._reads.read(key, read)

    async def _read_again(self, snapshot: TaskSnapshot, until: float, view: View) -> TaskSnapshot:
        try:
            async with asyncio.timeout_at(until + LAST_READ_TIMEOUT.total_seconds()):
                return await self._shared(
                    (snapshot.task_id, view), partial(self._read_snapshot, snapshot.task_id, view)
                )
        except TRANSIENT:
            return snapshot

    async def _read_snapshot(self, task_id: str, view: View) -> TaskSnapshot:
        found = await repository.fetch_task(self._database, task_id)
        if found is None:
            raise NotFound
        positions = await self.positions.find(self._database.fetch_shared, [found])
        return view(read_task(found, positions, self._signed_urls))

    async def _keep_checking(self) -> None:
        check_keys_at = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_INTERVAL.total_seconds())
            try:
                await self._check()
                if time.monotonic() >= check_keys_at:
                    await self._check_keys()
                    check_keys_at = time.monotonic() + self.check_keys_every.total_seconds()
            except TRANSIENT as error:
                log.warning("waits_not_checked", error=type(error).__name__, reason=advice(error))
            except Exception:
                log.exception("waits_check_error")

    async def _check(self) -> None:
        """Notify, by one query, every waiter whose task has another version than it has read, or is deleted."""
        watched = [each for each in self.wakeups.subscriptions() if each[1].version is not None]
        if not watched:
            return
        task_ids = {task_id for task_id, _ in watched}
        async with self._database.reads() as session:
            versions = await repository.read_versions(session, task_ids)
        for task_id, subscription in watched:
            if subscription.version != versions.get(task_id):
                subscription.notify()

    async def _check_keys(self) -> None:
        """End the streams of keys that may not read any more."""
        watched = [subscription for _, subscription in self.wakeups.subscriptions() if subscription.key_hash]
        if not watched:
            return
        async with self._database.reads() as session:
            hashes = {subscription.key_hash for subscription in watched}
            reading = await reading_keys(session, hashes)
        for subscription in watched:
            if subscription.key_hash not in reading:
                subscription.close()


def snapshot_of(task: TaskRead) -> TaskSnapshot:
    """The snapshot of a task, from its representation."""
    return TaskSnapshot(task.id, task.version, task.status in FINAL, task.model_dump_json().encode())


def respond_with(if_none_match: str | None, snapshot: TaskSnapshot) -> Response:
    """The response to a read of a task: 304 where the client has this version."""
    headers = {"ETag": snapshot.etag, "Cache-Control": "private, no-cache", "Vary": "Prefer"}
    if matches(if_none_match, snapshot.etag):
        return Response(None, 304, headers)
    return Response(snapshot.body, 200, headers, "application/json")


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


async def read_wait(request: Request, prefer: PreferHeader = None) -> Wait | None:
    """The wait that a request prefers, counted from its arrival."""
    seconds = preferred_wait(prefer or ())
    return None if seconds is None else Wait(seconds, arrived_at(request.scope) + seconds)


WaitDep = Annotated[Wait | None, Depends(read_wait)]
WaitersDep = Annotated[Waiters, provided(Waiters)]


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    # The rest of the request's body, which no route needs, may still be refused.
    with suppress(AppError):
        while (await receive())["type"] != "http.disconnect":
            pass
