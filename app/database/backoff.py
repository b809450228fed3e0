"""Exponential back-off with jitter."""

from __future__ import annotations

import random
from datetime import timedelta

JITTER = 0.2
# Beyond it every ceiling is reached, and the power would overflow.
MAX_DOUBLINGS = 20


def exponential(retries: int, start: timedelta, ceiling: timedelta) -> timedelta:
    """The delay before a retry: `start` doubled for each retry before it, at most `ceiling`."""
    return min(start * (1 << min(max(retries, 0), MAX_DOUBLINGS)), ceiling)


def jittered(delay: timedelta, rng: random.Random) -> timedelta:
    """The delay, up to a fifth shorter or longer, so that what failed together does not return together."""
    return delay * rng.uniform(1 - JITTER, 1 + JITTER)
