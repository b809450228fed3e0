"""Delays between attempts: they double up to a ceiling, and spread what failed together."""

import random
from datetime import timedelta

import pytest

from app.database.backoff import exponential, jittered

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("retries", "seconds"), [(-1, 2), (0, 2), (1, 4), (2, 8), (4, 32), (5, 60), (10**9, 60)])
def test_delay_doubles_with_each_retry_up_to_the_ceiling(retries: int, seconds: float) -> None:
    assert exponential(retries, 2 * SECOND, 60 * SECOND) == seconds * SECOND


def test_jitter_stays_within_a_fifth_and_spreads() -> None:
    rng = random.Random(0)  # noqa: S311 - the jitter guards nothing

    delays = [jittered(10 * SECOND, rng) / SECOND for _ in range(1000)]

    assert 8 <= min(delays) < 8.1
    assert 11.9 < max(delays) <= 12
