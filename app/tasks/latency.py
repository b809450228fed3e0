"""How long sounds take these days, for callers who ask when to come back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from math import ceil
from statistics import median

from app.database.engine import Session
from app.tasks import repository

FRESH_FOR = 10.0
# What is told before any task has succeeded, and the bounds of what is told afterwards.
UNKNOWN = 5
MAX_SECONDS = 300


class RetryAfterEstimate:
    """The median of the latest tasks, read rarely."""

    def __init__(self) -> None:
        self._seconds = UNKNOWN
        self._stale_at = 0.0

    async def seconds(self, session: Session) -> int:
        """After how many seconds a task that is ordered now is probably done."""
        if time.monotonic() >= self._stale_at:
            self._seconds = retry_after(await repository.recent_latencies(session))
            self._stale_at = time.monotonic() + FRESH_FOR
        return self._seconds


def retry_after(latencies: Sequence[timedelta]) -> int:
    """Whole seconds that half of these tasks took at most."""
    if not latencies:
        return UNKNOWN
    return min(max(1, ceil(median(span.total_seconds() for span in latencies))), MAX_SECONDS)
