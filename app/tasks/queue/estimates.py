"""How long a new task will probably take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from math import ceil
from statistics import median

from app.config import Rate
from app.database.engine import Session
from app.tasks import repository

FRESH_FOR = timedelta(seconds=10)
# In seconds: the estimate before any task has succeeded, the largest one afterwards, and that of a wait in the queue.
DEFAULT_RETRY_AFTER, MAX_RETRY_AFTER, MAX_WAIT = 5, 300, 3600


class RetryAfterEstimate:
    """The time from a submit to its end: the median of the latest ones, cached for FRESH_FOR; and the wait before."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._seconds = DEFAULT_RETRY_AFTER
        self._stale_at = 0.0

    @property
    def latest(self) -> int:
        """The estimate as it was last read, in seconds."""
        return self._seconds

    async def seconds(self, session: Session) -> int:
        """The whole seconds that a task takes that is submitted now, from 1 to MAX_RETRY_AFTER."""
        if time.monotonic() >= self._stale_at:
            self._seconds = retry_after(await repository.recent_latencies(session))
            self._stale_at = time.monotonic() + FRESH_FOR.total_seconds()
        return self._seconds

    def from_place(self, position: int | None, seconds: int) -> int:
        """The whole seconds until a task at this position has probably ended, if it takes so many from its submit."""
        before = 0 if position is None else position - 1
        wait = before * self._rate.period.total_seconds() / self._rate.requests
        return seconds + ceil(min(wait, MAX_WAIT))


def retry_after(latencies: Sequence[timedelta]) -> int:
    """The median of these latencies in whole seconds, from 1 to MAX_RETRY_AFTER; DEFAULT_RETRY_AFTER without any."""
    if not latencies:
        return DEFAULT_RETRY_AFTER
    return min(max(1, ceil(median(span.total_seconds() for span in latencies))), MAX_RETRY_AFTER)
