"""In-process wake-ups. Losing one only delays the waiter until its next poll."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

from sqlalchemy import event, orm

from app.database.engine import Database, Session

# Who subscribes to this hears of every commit that notifies anything.
EVERY_TASK = "*"
# The topics of the workers; every other topic is the id of a task.
SUBMITS = "submits"
POLLS = "polls"
PERIODIC_JOBS = "periodic_jobs"
DELIVERIES = "deliveries"
SWEEPS = "sweeps"
ARCHIVES = "archives"
ERASURES = "erasures"
WORKER_TOPICS = frozenset({SUBMITS, POLLS, PERIODIC_JOBS, DELIVERIES, SWEEPS, ARCHIVES, ERASURES})

Forward = Callable[[Collection[str]], None]


class Subscription:
    """
    A subscription to one topic, active inside its `with` block.

    Uses `__slots__` because a process may hold thousands. `version` is the latest
    version of the topic's task that the waiter has read, or None where it finds lost
    wake-ups by itself; `key_hash` is of the caller's key where the wait must end with it.
    """

    __slots__ = ("_is_notified", "_registry", "_timeout", "_topic", "is_closed", "key_hash", "version")

    def __init__(self, topic: str, registry: dict[str, set[Subscription]], *, is_closed: bool) -> None:
        self._topic, self._registry = topic, registry
        self._is_notified = self.is_closed = is_closed
        self._timeout: asyncio.Timeout | None = None
        self.version: int | None = 0
        self.key_hash = ""

    def __enter__(self) -> Subscription:
        self._registry.setdefault(self._topic, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        others = self._registry[self._topic]
        others.discard(self)
        if not others:
            del self._registry[self._topic]

    def notify(self) -> None:
        """Wake the waiter, so that it reads the task again."""
        self._is_notified = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)
            self._timeout = None

    def close(self) -> None:
        """Wake the waiter for the last time."""
        self.is_closed = True
        self.notify()

    async def wait(self, seconds: float, disconnected: Callable[[], Awaitable[None]]) -> bool:
        """
        Sleep until notified, for at most `seconds`; return whether it was notified.

        `disconnected` returns when the client is gone, which closes the subscription.
        The sleep is the wait for that, cut short by a notification: a second asyncio
        task for each waiter would cost 2 KiB more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_notified else seconds) as self._timeout:
                await disconnected()
                self._timeout = None
                self.close()
        self._timeout = None
        was_notified, self._is_notified = self._is_notified, False
        return was_notified


class Wakeups:
    """
    The wake-ups of one process, by topic.

    A worker waits for the event of its topic; a request that waits for a task
    subscribes to the task's id. A commit notifies its topics here and passes them to
    `forward`, which notifies the other replicas.
    """

    def __init__(self, database: Database) -> None:
        self._forward: Forward | None = None
        self._at_wait: Callable[[], None] | None = None
        self._events: dict[str, asyncio.Event] = {}
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._is_closed = False
        event.listen(database.session_class, "after_commit", self._notify_committed)

    def forward_to(self, forward: Forward, at_wait: Callable[[], None]) -> None:
        """Pass the topics of every later commit to `forward` too, and call `at_wait` where a request begins to wait."""
        self._forward, self._at_wait = forward, at_wait

    def event(self, topic: str) -> asyncio.Event:
        """The event that a worker waits for and clears; one for each topic."""
        return self._events.setdefault(topic, asyncio.Event())

    @property
    def has_subscriptions(self) -> bool:
        """Whether any request of this process waits for a task."""
        return bool(self._subscriptions)

    def subscribe(self, topic: str) -> Subscription:
        """A subscription to a topic, to be entered as a context manager."""
        if self._at_wait is not None:
            self._at_wait()
        return Subscription(topic, self._subscriptions, is_closed=self._is_closed)

    def subscriptions(self) -> Sequence[tuple[str, Subscription]]:
        """Every active subscription with its topic."""
        return [(topic, one) for topic, found in self._subscriptions.items() for one in found]

    def notify(self, topic: str) -> None:
        """Wake the worker and the requests of this process that wait for this topic."""
        if topic in self._events:
            self._events[topic].set()
        for heard in (topic, EVERY_TASK):
            for subscription in self._subscriptions.get(heard, ()):
                subscription.notify()

    def close(self) -> None:
        """Close every subscription, and each later one at once: the process is stopping."""
        self._is_closed = True
        for _, subscription in self.subscriptions():
            subscription.close()

    def _notify_committed(self, session: orm.Session) -> None:
        topics = session.info.pop("topics", ())
        # Requests and receivers wait for what was committed; the other loops would take the turn to write before them.
        for topic in sorted(topics, key=(WORKER_TOPICS - {DELIVERIES}).__contains__):
            self.notify(topic)
        if topics and self._forward is not None:
            self._forward(topics)


def notify_on_commit(session: Session | orm.Session, topic: str) -> None:
    """Notify a topic once, and only if, this transaction is committed."""
    session.info.setdefault("topics", set()).add(topic)
