"""Group commit: what arrives while one commit is under way is written by the next one, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError

from app.database.engine import TRANSIENT

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_Waiting = tuple[Item, asyncio.Future[Outcome]]
# SQLSTATE classes of errors that another transaction, or all of the database, has.
_UNAVAILABLE = ("08", "53", "57", "58")


class GroupCommit(Generic[Item, Outcome]):
    """
    Writes items with `write`, one commit at a time, each with at most `limit` of them.

    `write` calls the function that it is given for its items, once it has its turn to
    write, and returns an outcome for each, in order. Where a commit of several fails
    for a reason that may be one item's own, each is written by itself.
    """

    def __init__(
        self, write: Callable[[Callable[[], Sequence[Item]]], Awaitable[Sequence[Outcome]]], limit: int
    ) -> None:
        self._write, self._limit = write, limit
        self._pending: list[_Waiting[Item, Outcome]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Outcome:
        """Write an item; committed when this returns its outcome. Raises what `write` raised."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append((item, outcome))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._run())
        return await outcome

    async def _run(self) -> None:
        while self._pending:
            await self._commit(self._take_pending)

    def _take_pending(self) -> list[_Waiting[Item, Outcome]]:
        batch, self._pending = self._pending[: self._limit], self._pending[self._limit :]
        return batch

    async def _commit(self, take: Callable[[], list[_Waiting[Item, Outcome]]]) -> None:
        batch: list[_Waiting[Item, Outcome]] = []

        def take_items() -> Sequence[Item]:
            batch.extend(take())
            return [item for item, _ in batch]

        try:
            outcomes = await self._write(take_items)
        except Exception as error:
            await self._fail(batch or take(), error)
            return
        for (_, waiting), outcome in zip(batch, outcomes, strict=True):
            # Its caller may have gone.
            if not waiting.done():
                waiting.set_result(outcome)

    async def _fail(self, batch: list[_Waiting[Item, Outcome]], error: Exception) -> None:
        if len(batch) > 1 and _may_be_of_one(error):
            for one in batch:
                await self._commit(lambda alone=one: [alone])  # type: ignore[misc]
            return
        for _, waiting in batch:
            if not waiting.done():
                waiting.set_exception(error)


def _may_be_of_one(error: Exception) -> bool:
    """Whether an error may concern one item, and not the connection or all of the database."""
    if not isinstance(error, TRANSIENT):
        return True
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    return not isinstance(error, OperationalError) if sqlstate is None else not sqlstate.startswith(_UNAVAILABLE)
