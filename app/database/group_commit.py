"""Group commit: what arrives while one commit is under way is written by the next one, together."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError

from app.database.failures import TRANSIENT, is_locked
from app.errors import DatabaseUnavailable

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_Waiting = tuple[Item, asyncio.Future[Outcome]]
# SQLSTATE classes of errors that another transaction, or all of the database, has.
_UNAVAILABLE = ("08", "53", "57", "58")
# How soon an item is tried again whose row another transaction has locked.
LOCKED_RETRY = timedelta(milliseconds=100)


class RowLocked(Exception):
    """An item was not written, since another transaction has locked its row."""


class GroupCommit(Generic[Item, Outcome]):
    """
    Writes items with `write`, one commit at a time, each with at most `limit` of them.

    `write` calls the function that it is given for its items, once it has its turn to
    write, and returns an outcome for each, in order; an exception is raised by `add`.

    `is_idempotent`: an item may be written twice. Then it is written although its caller
    was canceled, and where a commit of several fails for a reason that may be one item's
    own, each is written by itself, apart: those that come meanwhile do not wait for it.

    More than `most` that wait at once are refused: they come back when there is room. Those of workers need no bound.

    `observe` is called with the number of items of each commit.
    """

    def __init__(
        self,
        write: Callable[[Callable[[], Sequence[Item]]], Awaitable[Sequence[Outcome | Exception]]],
        limit: int,
        *,
        is_idempotent: bool,
        most: float = math.inf,
        observe: Callable[[float], None] | None = None,
    ) -> None:
        self._write, self._limit, self._is_idempotent, self._most = write, limit, is_idempotent, most
        self._observe = observe
        self._pending: list[_Waiting[Item, Outcome]] = []
        self._writer: asyncio.Task[None] | None = None
        # Those of failed commits come before those that failed alone before.
        self._failed: deque[_Waiting[Item, Outcome]] = deque()
        self._retried: deque[_Waiting[Item, Outcome]] = deque()
        self._apart: asyncio.Task[None] | None = None

    async def add(self, item: Item, *, apart: bool = False) -> Outcome:
        """
        Write an item; committed when this returns its outcome. Raises what `write` raised, and DatabaseUnavailable.

        `apart`: by itself, because it has failed before.
        """
        if len(self._pending) + len(self._failed) + len(self._retried) >= self._most:
            raise DatabaseUnavailable("More arrives than can be stored. Retry after `Retry-After`.")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if apart:
            self._retried.append((item, outcome))
            self._write_apart()
        else:
            self._pending.append((item, outcome))
            self._writer = _running(self._writer, self._run)
        return await outcome

    async def add_patiently(self, item: Item, patience: timedelta | None) -> Outcome:
        """
        Write an item as `add` does; while another transaction locks its row, try again apart, for `patience`.

        None is without end. Raises DatabaseUnavailable, and what `write` raised.
        """
        until = None if patience is None else time.monotonic() + patience.total_seconds()
        was_locked = False
        while True:
            try:
                return await self.add(item, apart=was_locked)
            except RowLocked:
                was_locked = True
            except DBAPIError as error:
                if not is_locked(error):
                    raise
                was_locked = True
            if until is not None and time.monotonic() > until:
                raise DatabaseUnavailable("Others hold what this request changes. Retry after `Retry-After`.")
            await asyncio.sleep(LOCKED_RETRY.total_seconds())

    async def _run(self) -> None:
        while self._pending:
            took_part = len(self._pending)
            await self._commit(partial(self._take_pending, self._limit), partial(self._take_pending, took_part))

    def _take_pending(self, most: int) -> list[_Waiting[Item, Outcome]]:
        wanted = [one for one in self._pending if self._is_idempotent or not one[1].done()]
        batch, self._pending = wanted[:most], wanted[most:]
        return batch

    async def _commit(
        self,
        take: Callable[[], list[_Waiting[Item, Outcome]]],
        take_waiting: Callable[[], list[_Waiting[Item, Outcome]]],
    ) -> None:
        """
        Write what `take` takes. Where its turn does not come, fail what `take_waiting` takes.

        Those have waited as long as the turn: from a database that does not answer each would learn it only after
        all batches before it, each of which waits for some seconds.
        """
        batch: list[_Waiting[Item, Outcome]] = []

        def take_items() -> Sequence[Item]:
            batch.extend(take())
            return [item for item, _ in batch]

        try:
            outcomes = await self._write(take_items)
        except Exception as error:
            if batch:
                self._fail(batch, error)
            else:
                _refuse(take_waiting(), error)
            return
        if self._observe is not None and batch:
            self._observe(len(batch))
        for (_, waiting), outcome in zip(batch, outcomes, strict=True):
            # Its caller may have gone.
            if waiting.done():
                continue
            if isinstance(outcome, Exception):
                waiting.set_exception(outcome)
            else:
                waiting.set_result(outcome)

    def _fail(self, batch: list[_Waiting[Item, Outcome]], error: Exception) -> None:
        if self._is_idempotent and len(batch) > 1 and may_be_of_one(error):
            self._failed.extend(batch)
            self._write_apart()
            return
        _refuse(batch, error)

    def _write_apart(self) -> None:
        self._apart = _running(self._apart, self._run_apart)

    async def _run_apart(self) -> None:
        while self._failed or self._retried:
            one = (self._failed or self._retried).popleft()
            await self._commit(lambda one=one: [one], lambda one=one: [one, *self._take_apart()])  # type: ignore[misc]

    def _take_apart(self) -> list[_Waiting[Item, Outcome]]:
        waiting = [*self._failed, *self._retried]
        self._failed.clear()
        self._retried.clear()
        return waiting


def _refuse(batch: Sequence[_Waiting[Any, Any]], error: Exception) -> None:
    for _, waiting in batch:
        if not waiting.done():
            waiting.set_exception(error)


def _running(task: asyncio.Task[None] | None, run: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """The task, or a new one if it has ended. It logs nothing of the request that happens to start it."""
    if task is not None and not task.done():
        return task
    return asyncio.create_task(run(), context=Context())


def may_be_of_one(error: Exception) -> bool:
    """Whether an error may concern one item, and not the connection or all of the database."""
    if not isinstance(error, TRANSIENT):
        return True
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    return not isinstance(error, OperationalError) if sqlstate is None else not sqlstate.startswith(_UNAVAILABLE)
