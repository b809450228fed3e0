"""Waiting for news of a task: as long as the caller prefers, without a database connection, whatever gets lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Receive

from app.db import TRANSIENT, Database, Session
from app.errors import AppError
from app.links import Links
from app.signals import Signals, Watch
from app.tasks import repository
from app.tasks.schemas import TaskRead, read_task
from app.tasks.state import FINAL

log = structlog.get_logger()
Answer = TypeVar("Answer")

LONGEST_WAIT = 60
# How long after its deadline a wait may still look at the task before it answers what it saw last.
LAST_LOOK = 0.5
# A wake-up that got lost costs a waiter so many seconds.
CHECK_EVERY = 0.8
# Many may be woken at once; they leave the other connections to those who have not been served yet.
LOOKS_AT_ONCE = 4
SLOWEST_LOOK = 5.0

_WAIT = re.compile(r'wait\s*=\s*(?:"0*(\d{1,9})"|0*(\d{1,9}))\s*(?:;.*)?', re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller prefers to wait; `until` is on the event loop's clock."""

    seconds: int
    until: float


class Waits:
    """Everybody in this process who waits for news of a task."""

    def __init__(self, database: Database, signals: Signals, links: Links) -> None:
        self.signals = signals
        self._database, self._links = database, links
        self._turn = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def wait(
        self, seen: TaskRead, wait: Wait, is_awaited: Callable[[TaskRead], bool], receive: Receive
    ) -> TaskRead | None:
        """
        Return the task once it is as awaited, or as it stands when the wait ends, or None when it is erased.

        A stop of the process, and a caller who hangs up, end the wait with what was
        seen last; so does a database that is away at the end.
        """
        task: TaskRead | None = seen
        with self.signals.watch(seen.id) as watch:
            async with _hearing_hang_up(receive, watch):
                while task is not None and not is_awaited(task) and not watch.is_dismissed:
                    watch.version = task.version
                    left = wait.until - asyncio.get_running_loop().time()
                    if left <= 0:
                        break
                    await watch.rest(left)
                    if not watch.is_dismissed:
                        task = await self._look_again(task, wait.until)
        return task

    async def look(self, query: Callable[[Session], Awaitable[Answer]]) -> Answer:
        """Ask the database, in one's turn and in a transaction that ends with the answer."""
        async with self._turn, asyncio.timeout(SLOWEST_LOOK), self._database.reads() as session:
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

    async def _look_again(self, seen: TaskRead, until: float) -> TaskRead | None:
        try:
            async with asyncio.timeout_at(until + LAST_LOOK):
                return await self.look(lambda session: _read(session, seen.id, self._links))
        except TRANSIENT:
            return seen

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY)
            try:
                await self._check()
            except TRANSIENT as error:
                log.warning("waits_not_checked", error=type(error).__name__)

    async def _check(self) -> None:
        """One query for all: a task whose version its waiter has not seen, or that is gone, rings."""
        watched = self.signals.watched()
        if not watched:
            return
        task_ids = {task_id for task_id, _ in watched}
        async with self._database.reads() as session:
            versions = await repository.read_versions(session, task_ids)
        for task_id, watch in watched:
            if watch.version != versions.get(task_id):
                watch.ring()


def is_final(task: TaskRead) -> bool:
    """Whether a task has ended."""
    return task.status in FINAL


def preferred_wait(preferences: Sequence[str]) -> int | None:
    """
    The seconds of the first `wait` among the values of Prefer (RFC 7240), at most the longest; None without one.

    What cannot be read is ignored: a preference is nothing that a request may fail for.
    """
    for preference in ",".join(preferences).split(","):
        name = preference.partition("=")[0].partition(";")[0].strip()
        if name.lower() == "wait":
            found = _WAIT.fullmatch(preference.strip())
            return min(int(found[1] or found[2]), LONGEST_WAIT) if found else None
    return None


async def read_wait(
    request: Request, response: Response, prefer: Annotated[str | SkipJsonSchema[None], Header()] = None
) -> Wait | None:
    """The wait that a request prefers, counted from its arrival; the answer says that it was applied."""
    seconds = None if prefer is None else preferred_wait(request.headers.getlist("prefer"))
    if seconds is None:
        return None
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return Wait(seconds, asyncio.get_running_loop().time() + seconds)


def get_waits(request: Request) -> Waits:
    """Those who wait in this process."""
    waits: Waits = request.app.state.waits
    return waits


WaitDep = Annotated[Wait | None, Depends(read_wait)]
WaitsDep = Annotated[Waits, Depends(get_waits)]


async def _read(session: Session, task_id: str, links: Links) -> TaskRead | None:
    task = await repository.find_task(session, task_id)
    return read_task(task, await repository.queue_positions(session, [task]), links) if task else None


@asynccontextmanager
async def _hearing_hang_up(receive: Receive, watch: Watch) -> AsyncIterator[None]:
    async def hear() -> None:
        # What is still received of a request that was understood already may yet be refused.
        with suppress(AppError):
            while (await receive())["type"] != "http.disconnect":
                pass
        watch.dismiss()

    hearing = asyncio.create_task(hear())
    try:
        yield
    finally:
        hearing.cancel()
