"""Wake-ups: who waits for something hears of it at once, and finds it a moment later by itself if not."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from sqlalchemy import event, orm

from app.db import Database, Session

SUBMITS = "submits"
POLLS = "polls"
CHORES = "chores"
DELIVERIES = "deliveries"


class Signals:
    """Named wake-ups inside one process; losing one costs a waiter its fallback interval, never its answer."""

    def __init__(self, database: Database) -> None:
        self._bells: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        event.listen(database.session_class, "after_commit", self._ring_committed)

    def bell(self, name: str) -> asyncio.Event:
        """What a waiter waits on and clears; the same one for everybody who says this name."""
        return self._bells[name]

    def ring(self, name: str) -> None:
        """Wake whoever waits for this name."""
        self._bells[name].set()

    def _ring_committed(self, session: orm.Session) -> None:
        for name in session.info.pop("rings", ()):
            self.ring(name)


def ring_on_commit(session: Session | orm.Session, name: str) -> None:
    """Wake the waiters for this name once, and only if, this transaction is committed."""
    session.info.setdefault("rings", set()).add(name)
