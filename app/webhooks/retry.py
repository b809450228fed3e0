"""When a delivery is retried, and when its endpoint is paused or disabled: pure functions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.enums import DisabledBy

GONE = 410
THROTTLING = frozenset({429, 502, 504})
FAILS_AT_MOST = timedelta(days=5)
MAX_PAUSE = timedelta(minutes=5)
JITTER = 0.2


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

    A receiver may ask for more time, up to twice what the schedule says. Jitter spreads
    deliveries that failed together.
    """
    if attempts >= len(schedule):
        return None
    base = schedule[attempts]
    return max(base * rng.uniform(1 - JITTER, 1 + JITTER), min(retry_after or timedelta(), 2 * base))


def pause_after(outcome: AttemptResult, delay: timedelta | None) -> timedelta | None:
    """
    Return for how long the receiver gets no deliveries at all, or None where it did not ask for a pause.

    `delay` is the delay of the delivery itself: others do not wait for its late retries.
    """
    if outcome.status_code not in THROTTLING:
        return None
    return min(outcome.retry_after or MAX_PAUSE, delay or MAX_PAUSE)


def disabled_by(outcome: AttemptResult, failing_since: datetime, now: datetime) -> DisabledBy | None:
    """Return why to disable an endpoint whose attempts have failed since `failing_since`, or None to go on."""
    if outcome.status_code == GONE:
        return DisabledBy.gone
    return DisabledBy.failing if now - failing_since >= FAILS_AT_MOST else None


def share_room(lanes: Sequence[str], busy: Mapping[str, int], room: int, most: int) -> dict[str, int]:
    """
    Return how many deliveries of each lane to begin: as evenly as the room allows, and never more than `most` at once.

    `busy` counts those that a lane has under way already.
    """
    each = max(1, room // max(1, len(lanes)))
    shares: dict[str, int] = {}
    for lane in lanes:
        share = min(each, most - busy.get(lane, 0), room)
        if share > 0:
            shares[lane] = share
            room -= share
    return shares
