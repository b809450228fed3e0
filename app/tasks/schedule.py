"""When a task is polled or submitted again: pure functions of the task, the settings, the time and a random source."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.config import Settings
from app.database.backoff import exponential, jittered
from app.enums import TaskStatus
from app.models import Task
from app.tasks.clips import UPSTREAM_RETENTION

EAGER_START = timedelta(seconds=3)
EAGER_GROWTH = 1.5
# The upstream allows three polls a second for one task.
MIN_POLL_INTERVAL = timedelta(seconds=0.34)
MAX_LATE_POLL_DELAY = timedelta(days=1)
# Polls for announced audio before it counts as missing, in no less time than at the steady pace: it may come late.
MAX_AUDIO_CHECKS = 5
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


def ladder(settings: Settings, *, callbacks_missing: bool) -> PollLadder:
    """The ladder to poll by: quiet while callbacks do the work."""
    is_eager = settings.public_url is None or callbacks_missing
    return PollLadder(settings.poll_after, settings.poll_every, is_eager)


def next_poll_at(
    task: Task, settings: Settings, now: datetime, rng: random.Random, *, callbacks_missing: bool
) -> datetime:
    """When a generating task is polled next; the last poll is at its deadline."""
    delay = poll_delay(ladder(settings, callbacks_missing=callbacks_missing).delay(task.attempts), rng)
    return min(now + delay, max(deadline_of(task, settings), now + MIN_POLL_INTERVAL))


def next_late_poll_at(task: Task, settings: Settings, now: datetime, rng: random.Random) -> datetime | None:
    """
    When a task that has ended is polled next; None once the upstream no longer has its audio.

    What a succeeded task misses may come at any moment: its first polls climb the eager ladder.
    """
    eager = PollLadder(settings.poll_after, settings.poll_every, is_eager=True)
    looks = MAX_AUDIO_CHECKS if task.status is TaskStatus.succeeded else 0
    is_soon = task.attempts < looks
    late = late_poll_delay(task.attempts - looks, settings.poll_every)
    delay = poll_delay(eager.delay(task.attempts) if is_soon else late, rng)
    return now + delay if now < (task.submitted_at or task.created_at) + UPSTREAM_RETENTION else None


def early_poll_at(task: Task, now: datetime) -> datetime:
    """When a poll completes what a callback left open; callbacks that repeat do not make polls more frequent."""
    soon = now + MIN_POLL_INTERVAL
    return min(task.due_at or soon, soon)


def is_audio_missing(task: Task, settings: Settings, now: datetime) -> bool:
    """Whether enough polls over enough time have found no audio of a task that is over."""
    looked_for = now - (task.submitted_at or task.created_at)
    return task.audio_checks > MAX_AUDIO_CHECKS and looked_for >= MAX_AUDIO_CHECKS * settings.poll_every


def deadline_of(task: Task, settings: Settings) -> datetime:
    """When a `generating` or `unconfirmed` task fails."""
    spans = {TaskStatus.generating: settings.task_deadline, TaskStatus.unconfirmed: settings.submit_deadline}
    return (task.submitted_at or task.created_at) + spans[task.status]


def late_poll_delay(polls: int, poll_every: timedelta) -> timedelta:
    """The delay after this many polls of a task that we gave up on."""
    return exponential(polls, poll_every, MAX_LATE_POLL_DELAY)


def poll_delay(delay: timedelta, rng: random.Random) -> timedelta:
    """A delay between two polls of one task with jitter, never shorter than the upstream allows."""
    return max(MIN_POLL_INTERVAL, jittered(delay, rng))


def submit_retry_delay(attempts: int, retry_after: timedelta | None) -> timedelta:
    """The delay after this many attempts of a refused or unsent submit; the upstream may ask for more."""
    return max(exponential(attempts - 1, MIN_SUBMIT_RETRY, MAX_SUBMIT_RETRY), retry_after or timedelta())
