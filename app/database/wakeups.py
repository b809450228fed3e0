"""Wake-ups: who waits for something hears of it at once, and finds it a moment later by itself if not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

from sqlalchemy import event, orm

from app.database.engine import Database, Session

SUBMITS = "submits"
POLLS = "polls"
CHORES = "chores"
DELIVERIES = "deliveries"
ARCHIVES = "archives"
ERASURES = "erasures"


class Watch:
    """
    One waiter's ear for one name, as long as it is entered; as small as can be: there may be thousands.

    `version` is the last one that its waiter has seen; whoever knows of another rings.
    """

    __slots__ = ("_among", "_is_rung", "_name", "_nap", "is_dismissed", "version")

    def __init__(self, name: str, among: dict[str, set[Watch]], *, is_dismissed: bool) -> None:
        self._name, self._among = name, among
        self._is_rung = self.is_dismissed = is_dismissed
        self._nap: asyncio.Timeout | None = None
        self.version = 0

    def __enter__(self) -> Watch:
        self._among.setdefault(self._name, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        others = self._among[self._name]
        others.discard(self)
        if not others:
            del self._among[self._name]

    def ring(self) -> None:
        """Wake the waiter to look again."""
        self._is_rung = True
        if self._nap is not None and not self._nap.expired():
            self._nap.reschedule(0)
            self._nap = None

    def dismiss(self) -> None:
        """Wake the waiter to leave."""
        self.is_dismissed = True
        self.ring()

    async def rest(self, seconds: float, hang_up: Callable[[], Awaitable[None]]) -> bool:
        """
        Sleep until rung, at most so long; return whether it was rung. Who hangs up meanwhile is dismissed.

        The nap is the wait for the caller to hang up, and a ring is its end: another
        task to hear of one of them would cost 2 KiB more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_rung else seconds) as self._nap:
                await hang_up()
                self._nap = None
                self.dismiss()
        self._nap = None
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
        self._watches: dict[str, set[Watch]] = {}
        self._is_dismissed = False
        event.listen(database.session_class, "after_commit", self._ring_committed)

    def bell(self, name: str) -> asyncio.Event:
        """What a loop waits on and clears; the same one for everybody who says this name."""
        return self._bells.setdefault(name, asyncio.Event())

    def watch(self, name: str) -> Watch:
        """Hear of this name as long as the watch is entered."""
        return Watch(name, self._watches, is_dismissed=self._is_dismissed)

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
