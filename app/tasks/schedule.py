"""When a task is looked at next: pure functions of how often that was done before."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import timedelta

from app.config import Settings

JITTER = 0.2
EAGER_START = timedelta(seconds=3)
EAGER_GROWTH = 1.5
# The upstream allows three polls a second for one task.
MIN_POLL_INTERVAL = timedelta(seconds=0.34)
MAX_LATE_POLL_DELAY = timedelta(hours=1)
MIN_SUBMIT_RETRY = timedelta(seconds=1)
MAX_SUBMIT_RETRY = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class PollLadder:
    """The delays before a task's first poll and between its later ones."""

    first: timedelta
    every: timedelta
    is_eager: bool

    def delay(self, polls: int) -> timedelta:
        """
        How long to wait after this many polls.

        Where no callbacks come the ladder is eager: from 3 seconds, each delay half
        as long again, up to the steady pace.
        """
        if self.is_eager:
            eager = EAGER_START * math.pow(EAGER_GROWTH, min(polls, 50))
            return min(eager, self.first if polls == 0 else self.every)
        return self.first if polls == 0 else self.every


def ladder(settings: Settings, *, callbacks_stay_away: bool) -> PollLadder:
    """The ladder to poll by: quiet while callbacks do the work."""
    is_eager = settings.public_url is None or callbacks_stay_away
    return PollLadder(settings.poll_after, settings.poll_every, is_eager)


def late_poll_delay(polls: int, poll_every: timedelta) -> timedelta:
    """How long to wait before asking again, after so many polls, for a task that we have given up on."""
    return min(poll_every * (1 << min(polls, 20)), MAX_LATE_POLL_DELAY)


def poll_delay(delay: timedelta, rng: random.Random) -> timedelta:
    """A delay between two polls of one task, jittered, and never shorter than the upstream allows."""
    return max(MIN_POLL_INTERVAL, jittered(delay, rng))


def submit_retry_delay(attempts: int, retry_after: timedelta | None) -> timedelta:
    """How long a refused or unsent submit waits, after so many attempts; the upstream may ask for more."""
    delay = min(MIN_SUBMIT_RETRY * (1 << min(max(attempts - 1, 0), 20)), MAX_SUBMIT_RETRY)
    return max(delay, retry_after or timedelta())


def jittered(delay: timedelta, rng: random.Random) -> timedelta:
    """The delay, up to a fifth shorter or longer, so that what failed together does not come back together."""
    return delay * rng.uniform(1 - JITTER, 1 + JITTER)
