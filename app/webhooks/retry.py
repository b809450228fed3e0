"""When a delivery is retried, and when its endpoint is paused or disabled: pure functions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.database.backoff import jittered
from app.enums import DisabledBy

GONE = 410
THROTTLING = frozenset({429, 502, 504})
MAX_FAILING_TIME = timedelta(days=5)
MAX_PAUSE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt: a status code or an error; `response` is the start of the response body."""

    attempted_at: datetime
    duration: timedelta
    status_code: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after: timedelta | None = None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx; redirects are not followed."""
        return self.status_code is not None and 200 <= self.status_code < 300


def next_delay(
    schedule: Sequence[timedelta], attempts: int, retry_after: timedelta | None, rng: random.Random
) -> timedelta | None:
    """
    Return how long to wait after this many attempts, or None to give up.

    `Retry-After` can extend the delay to twice that of the schedule. Jitter spreads
    deliveries that failed together.
    """
    if attempts >= len(schedule):
        return None
    base = schedule[attempts]
    return max(jittered(base, rng), min(retry_after or timedelta(), 2 * base))


def pause_after(result: AttemptResult, delay: timedelta | None) -> timedelta | None:
    """
    Return for how long the receiver gets no deliveries at all, or None if its response does not ask for a pause.

    The pause is at most `delay`, the one before this delivery's next attempt: its later retries
    do not hold up other deliveries.
    """
    if result.status_code not in THROTTLING:
        return None
    return min(result.retry_after or MAX_PAUSE, delay or MAX_PAUSE)


def disabled_by(result: AttemptResult, failing_since: datetime, now: datetime) -> DisabledBy | None:
    """Return why to disable an endpoint that has failed since `failing_since`, or None to keep it enabled."""
    if result.status_code == GONE:
        return DisabledBy.gone
    return DisabledBy.failing if now - failing_since >= MAX_FAILING_TIME else None


def share_places(lanes: Sequence[str], in_flight: Mapping[str, int], places: int, max_per_lane: int) -> dict[str, int]:
    """
    Return how many deliveries of each lane to claim, spread evenly over the free places.

    `in_flight` counts the attempts of each lane that have not ended; with them no lane
    gets more than `max_per_lane`.
    """
    each = max(1, places // max(1, len(lanes)))
    shares: dict[str, int] = {}
    for lane in lanes:
        share = min(each, max_per_lane - in_flight.get(lane, 0), places)
        if share > 0:
            shares[lane] = share
            places -= share
    return shares
