"""Orders that wait for no lock, stored in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy.exc import DBAPIError

from app.database.engine import Database
from app.database.group_commit import GroupCommit, may_be_of_one
from app.database.turns import Admission
from app.errors import BudgetExceeded
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.queue.insertion import Order

# Orders that one commit stores at most.
MAX_IN_A_COMMIT = 50
# The orders of a key take turns at its account, on all replicas: what is held for longer than a few commits take, is
# not held by orders.
LOCK_TIMEOUT = timedelta(seconds=0.5)


# The queue positions of tasks by id, and the seconds that one probably takes from its submit.
Estimates = tuple[Mapping[str, int], int]


class NotStored(Exception):
    """Nothing of a group is stored, perhaps for a reason of one order: each goes its own way."""


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A task that is committed, and the estimates for its group, which are being read."""

    task: SimpleNamespace
    estimates: Awaitable[Estimates]


class PlainOrders:
    """
    Stores orders that wait for no lock: without an Idempotency-Key, of a key without a rate.

    Those that arrive while one commit is under way share the next one; `read_estimates` is
    called once for each group, and `observe` with its size.
    """

    def __init__(
        self,
        database: Database,
        lifecycle: TaskLifecycle,
        read_estimates: Callable[[Sequence[SimpleNamespace]], Coroutine[Any, Any, Estimates]],
        observe: Callable[[float], None],
    ) -> None:
        self._database, self._lifecycle, self._read_estimates = database, lifecycle, read_estimates
        # An order whose commit has failed without an answer may be stored: nobody repeats it here.
        self._group = GroupCommit(self._store, MAX_IN_A_COMMIT, is_idempotent=False, observe=observe)
        self._admission = Admission(MAX_IN_A_COMMIT)

    async def store(self, order: Order) -> StoredOrder | None:
        """
        The stored order, or None: nothing is stored, and it must be stored by itself.

        Raises DatabaseUnavailable, and BudgetExceeded whatever becomes of the others.
        """
        try:
            async with self._admission.admitted():
                task, reading = await self._group.add(order)
        except NotStored:
            return None
        return StoredOrder(task, asyncio.shield(reading))

    async def _store(
        self, take: Callable[[], Sequence[Order]]
    ) -> Sequence[tuple[SimpleNamespace, asyncio.Task[Estimates]] | Exception]:
        async with self._database.writes.begin() as session:
            now = await self._database.begin_briefly(session, LOCK_TIMEOUT)
            try:
                outcomes = await self._lifecycle.create_each(session, take(), now)
            except DBAPIError as error:
                if may_be_of_one(error):
                    raise NotStored from error
                raise
        tasks = [outcome for outcome in outcomes if not isinstance(outcome, BudgetExceeded)]
        if not tasks:
            return [each for each in outcomes if isinstance(each, BudgetExceeded)]
        reading = asyncio.create_task(self._read_estimates(tasks), context=Context())
        return [each if isinstance(each, BudgetExceeded) else (each, reading) for each in outcomes]
