"""Start-time fair queueing: whose task is next, as pure functions of each key's start tag and weight."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil

# A start tag is the sum of fractions: those that differ by less are equal.
DIGITS = 9


@dataclass(frozen=True, slots=True)
class Share:
    """
    A key with queued tasks: `start` is the start tag of its next one, which is due since `oldest_at`.

    Each task of it that is served moves its start tag on by 1/weight.
    """

    key: str
    oldest_at: datetime
    start: float
    weight: int

    def start_of(self, place: int) -> float:
        """The start tag of its task at this place from 0."""
        return self.start + place / self.weight

    def before(self, start: float, than: Share) -> int:
        """How many of its tasks go before one of another key with this start tag, if it has so many."""
        places = round((start - self.start) * self.weight, DIGITS)
        is_tied_and_older = places == int(places) and (self.oldest_at, self.key) < (than.oldest_at, than.key)
        return max(0, ceil(places) + is_tied_and_older)


def choose(shares: Iterable[Share], limit: int) -> Mapping[str, int]:
    """How many of the next `limit` tasks each key has: the smallest start tag goes next, the oldest among equals."""
    chosen: Counter[str] = Counter()
    heap = [(share.start, share.oldest_at, share.key, share) for share in shares]
    heapq.heapify(heap)
    for _ in range(limit if heap else 0):
        _, oldest_at, key, share = heap[0]
        chosen[key] += 1
        heapq.heapreplace(heap, (share.start_of(chosen[key]), oldest_at, key, share))
    return chosen
