"""When a delivery is retried, when its endpoint is paused or disabled, and who is next: pure functions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heapreplace
from typing import Any

from app.database.backoff import jittered
from app.enums import DisabledBy

GONE = 410
THROTTLING = frozenset({429, 502, 504})
MAX_FAILING_TIME = timedelta(days=5)
MAX_PAUSE = timedelta(minutes=5)
# The most attempts of a process that are under way at once for one key, for a host of it, and for a receiver.
MAX_CONCURRENT = 50, 20, 5


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
    def ended_at(self) -> datetime:
        """When there was a response, or none to be waited for any more."""
        return self.attempted_at + self.duration

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


@dataclass(frozen=True, slots=True)
class Lane:
    """The deliveries of one key to one receiver, a part of those to its host."""

    api_key_id: str
    host: str
    name: str

    @property
    def groups(self) -> tuple[str, str, str]:
        """The names by which attempts under way are counted: the key, the key's host, and the lane."""
        return self.api_key_id, f"{self.api_key_id} {self.host}", self.name


def share_places(lanes: Sequence[Lane], in_flight: Mapping[str, int], places: int) -> dict[Lane, int]:
    """
    Return how many deliveries of each lane to claim, for lanes that get any.

    `in_flight` counts the attempts under way by group. Each place goes to the key with the fewest, in it to the
    host with the fewest, and there to the lane with the fewest; none gets more than MAX_CONCURRENT.
    """
    keys = _ranked(lanes, in_flight, 0)
    shares: Counter[Lane] = Counter()
    while keys and places:
        if (lane := _next_lane(keys, 0)) is not None:
            shares[lane] += 1
            places -= 1
    return dict(shares)


# A heap of keys, of a key's hosts or of a host's lanes: the attempts under way, then what is ranked below.
_Ranked = list[tuple[int, int, Any]]


def _ranked(lanes: Sequence[Lane], in_flight: Mapping[str, int], level: int) -> _Ranked:
    groups: dict[str, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(lane.groups[level], []).append(lane)
    is_lane = level == len(MAX_CONCURRENT) - 1
    ranked: _Ranked = [
        (in_flight.get(group, 0), number, members[0] if is_lane else _ranked(members, in_flight, level + 1))
        for number, (group, members) in enumerate(groups.items())
    ]
    heapify(ranked)
    return ranked


def _next_lane(ranked: _Ranked, level: int) -> Lane | None:
    """Take a place in the lowest of these groups; None, and it is left out from now on, where that has none."""
    count, number, below = ranked[0]
    if count < MAX_CONCURRENT[level]:
        lane: Lane | None = below if isinstance(below, Lane) else None
        while lane is None and below:
            lane = _next_lane(below, level + 1)
        if lane is not None:
            heapreplace(ranked, (count + 1, number, below))
            return lane
    heappop(ranked)
    return None
