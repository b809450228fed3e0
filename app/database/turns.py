"""Whose turn it is to write: by priority, by key, and no more at once than the database can take."""

from __future__ import annotations

import asyncio
import builtins
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Pool
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_only

from app.errors import DatabaseUnavailable

# How many orders may wait, and how long one may; the rest is refused at once, and comes back.
MAX_WAITING = 500
PATIENCE = timedelta(seconds=10)
# The weight of the latest order in the mean time of one.
_WEIGHT = 0.2


class PriorityLock:
    """A lock whose waiters take turns by priority, the lowest number first, then by arrival."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    async def acquire(self, priority: int, patience: float) -> None:
        """Wait for at most `patience` seconds. Raises TimeoutError."""
        if not self._is_held:
            self._is_held = True
            return
        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            async with asyncio.timeout(patience):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                # The turn came together with the end of the wait.
                self.release()
            raise

    def release(self) -> None:
        """Give the lock to the next waiter."""
        while self._waiting:
            turn = heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._is_held = False


class _PrioritizedPool(AsyncAdaptedQueuePool):
    """A pool of one connection, which is lent only to the holder of a lock that other pools share."""

    lock: PriorityLock
    priority: int

    def _do_get(self) -> Any:
        try:
            await_only(self.lock.acquire(self.priority, self._timeout))
        except builtins.TimeoutError:
            raise PoolTimeout(f"no turn to write within {self._timeout:g} s") from None
        try:
            return super()._do_get()
        except BaseException:
            self.lock.release()
            raise

    def _do_return_conn(self, record: Any) -> None:
        super()._do_return_conn(record)
        self.lock.release()


def prioritized_pool(lock: PriorityLock, priority: int) -> type[Pool]:
    """A class of pools that share a lock: one of all their connections is in use at a time."""
    return type("PrioritizedPool", (_PrioritizedPool,), {"lock": lock, "priority": priority})


class KeyedLocks:
    """A lock for each key that is in use."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def held(self, key: str, patience: timedelta) -> AsyncIterator[None]:
        """Hold the lock of this key inside the block. Raises DatabaseUnavailable if it is not free in time."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await lock.acquire()
        except TimeoutError:
            raise DatabaseUnavailable("Others hold what this request changes. Retry after `Retry-After`.") from None
        try:
            yield
        finally:
            lock.release()


class Admission:
    """
    Lets a number of writers in at once; the others wait outside, without a connection.

    One that could not be let in within PATIENCE, as the recent ones tell, is refused at
    once: a queue that only grows would make every caller wait in vain.
    """

    def __init__(self, places: int) -> None:
        self._places, self._free = places, asyncio.Semaphore(places)
        self._waiting, self._mean = 0, 0.0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place inside the block. Raises DatabaseUnavailable."""
        expected = self._waiting / self._places * self._mean
        if self._waiting >= MAX_WAITING or expected > PATIENCE.total_seconds():
            raise _overloaded(expected)
        with self._counted():
            try:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    await self._free.acquire()
            except TimeoutError:
                raise _overloaded(expected) from None
        began = time.monotonic()
        try:
            yield
        finally:
            self._mean += _WEIGHT * (time.monotonic() - began - self._mean)
            self._free.release()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


def _overloaded(expected: float) -> DatabaseUnavailable:
    headers = {"Retry-After": str(max(2, math.ceil(expected)))}
    return DatabaseUnavailable("More tasks arrive than can be stored. Retry after `Retry-After`.", headers=headers)
