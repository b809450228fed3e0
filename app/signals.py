"""Wake-ups: who waits for something hears of it at once, and finds it a moment later by itself if not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy import event, orm

from app.db import Database, Session

SUBMITS = "submits"
POLLS = "polls"
CHORES = "chores"
DELIVERIES = "deliveries"
ARCHIVES = "archives"
ERASURES = "erasures"


class Watch:
    """
    One waiter's ear for one name, as small as can be: there may be thousands.

    `version` is the last one that its waiter has seen; whoever knows of another rings.
    """

    __slots__ = ("_is_rung", "_sleep", "is_dismissed", "version")

    def __init__(self, *, is_dismissed: bool) -> None:
        self._is_rung = self.is_dismissed = is_dismissed
        self._sleep: asyncio.Future[None] | None = None
        self.version = 0

    def ring(self) -> None:
        """Wake the waiter to look again."""
        self._is_rung = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    def dismiss(self) -> None:
        """Wake the waiter to leave."""
        self.is_dismissed = True
        self.ring()

    async def rest(self, seconds: float) -> bool:
        """Sleep until rung, at most so long; return whether it was rung."""
        if not self._is_rung:
            self._sleep = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._sleep
        was_rung, self._is_rung = self._is_rung, False
        return was_rung


class Signals:
    """
    Named wake-ups inside one process; losing one costs a waiter its fallback interval, never its answer.

    Loops have a bell each, under one of the names above. Whoever waits for a task
    watches its id. `pass_on` gets the names that this process's commits ring.
    """

    def __init__(self, database: Database) -> None:
        self.pass_on: Callable[[Collection[str]], None] = _keep_to_ourselves
        self._bells: dict[str, asyncio.Event] = {}
        self._watches: dict[str, set[Watch]] = defaultdict(set)
        self._is_dismissed = False
        event.listen(database.session_class, "after_commit", self._ring_committed)

    def bell(self, name: str) -> asyncio.Event:
        """What a loop waits on and clears; the same one for everybody who says this name."""
        return self._bells.setdefault(name, asyncio.Event())

    @contextmanager
    def watch(self, name: str) -> Iterator[Watch]:
        """Hear of this name as long as the block lasts."""
        watch = Watch(is_dismissed=self._is_dismissed)
        self._watches[name].add(watch)
        try:
            yield watch
        finally:
            self._watches[name].discard(watch)
            if not self._watches[name]:
                del self._watches[name]

    def watched(self) -> Sequence[tuple[str, Watch]]:
        """Every watch there is now, with its name."""
        return [(name, watch) for name, watches in self._watches.items() for watch in watches]

    def ring(self, name: str) -> None:
        """Wake whoever waits for this name."""
        if name in self._bells:
            self._bells[name].set()
        for watch in self._watches.get(name, ()):
            watch.ring()

    def dismiss(self) -> None:
        """Nobody shall wait any more, nor begin to: the process is stopping."""
        self._is_dismissed = True
        for _, watch in self.watched():
            watch.dismiss()

    def _ring_committed(self, session: orm.Session) -> None:
        names = session.info.pop("rings", ())
        for name in names:
            self.ring(name)
        if names:
            self.pass_on(names)


def ring_on_commit(session: Session | orm.Session, name: str) -> None:
    """Wake the waiters for this name once, and only if, this transaction is committed."""
    session.info.setdefault("rings", set()).add(name)


def _keep_to_ourselves(_: Collection[str]) -> None:
    """One process has nobody to tell."""
