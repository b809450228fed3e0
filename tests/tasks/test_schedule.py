"""The delays between polls and between submits of a task."""

import random
from datetime import timedelta

import pytest

from app.enums import TaskStatus
from app.models import Task
from app.tasks.schedule import (
    PollLadder,
    ladder,
    late_poll_delay,
    next_late_poll_at,
    poll_delay,
    submit_retry_delay,
)
from tests.support.clock import MORNING
from tests.support.settings import settings_of

SECOND = timedelta(seconds=1)
QUIET = PollLadder(45 * SECOND, 30 * SECOND, is_eager=False)
EAGER = PollLadder(45 * SECOND, 30 * SECOND, is_eager=True)


@pytest.mark.parametrize(("polls", "seconds"), [(0, 45), (1, 30), (2, 30), (1000, 30)])
def test_quiet_ladder_waits_once_for_the_callback_then_polls_steadily(polls: int, seconds: float) -> None:
    assert QUIET.delay(polls) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("polls", "seconds"), [(0, 3), (1, 4.5), (2, 6.75), (5, 22.78125), (6, 30), (7, 30), (10**9, 30)]
)
def test_eager_ladder_starts_at_three_seconds_and_grows_to_the_steady_pace(polls: int, seconds: float) -> None:
    assert EAGER.delay(polls) == timedelta(seconds=seconds)


def test_no_pause_between_polls_is_shorter_than_the_upstream_allows() -> None:
    rng = random.Random(1)  # noqa: S311 - draws delays

    assert min(poll_delay(delay * SECOND / 10, rng) for delay in range(10) for _ in range(100)) >= SECOND / 3


@pytest.mark.parametrize(
    ("polls", "seconds"), [(0, 30), (1, 60), (6, 1920), (11, 61_440), (12, 86_400), (10**9, 86_400)]
)
def test_expired_tasks_are_polled_ever_more_rarely(polls: int, seconds: float) -> None:
    assert late_poll_delay(polls, 30 * SECOND) == timedelta(seconds=seconds)


def test_clip_that_a_success_misses_is_looked_for_soon_and_then_ever_more_rarely() -> None:
    settings, rng = settings_of("sqlite+aiosqlite:///unused.db"), random.Random(1)  # noqa: S311 - draws delays
    task = Task(status=TaskStatus.succeeded, created_at=MORNING)
    delays = []
    for task.attempts in range(7):
        due_at = next_late_poll_at(task, settings, MORNING, rng)
        assert due_at is not None
        delays.append((due_at - MORNING).total_seconds())

    assert delays == [pytest.approx(seconds, rel=0.2) for seconds in (3, 4.5, 6.75, 10.125, 15.1875, 30, 60)]


def test_tasks_that_were_given_up_together_spread_over_hours() -> None:
    rng = random.Random(1)  # noqa: S311 - draws delays
    ends = []
    for _ in range(100):
        delays = (poll_delay(late_poll_delay(polls, 30 * SECOND), rng) for polls in range(13))
        ends.append(sum(delays, timedelta()))

    assert max(ends) - min(ends) > timedelta(hours=6)


@pytest.mark.parametrize(
    ("public_url", "callbacks_missing", "is_eager"),
    [("https://sounds.example", False, False), ("https://sounds.example", True, True), (None, False, True)],
)
def test_ladder_is_eager_where_no_callback_comes(
    public_url: str | None, callbacks_missing: bool, is_eager: bool
) -> None:
    settings = settings_of("sqlite+aiosqlite:///unused.db", public_url=public_url)

    assert ladder(settings, callbacks_missing=callbacks_missing).is_eager is is_eager


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (7, 64), (8, 120), (10**9, 120)]
)
def test_refused_submits_back_off(attempts: int, seconds: float) -> None:
    assert submit_retry_delay(attempts, None) == timedelta(seconds=seconds)


def test_first_retry_of_a_submit_comes_within_fifteen_seconds() -> None:
    assert submit_retry_delay(1, None) * 1.2 <= 15 * SECOND


def test_upstream_may_ask_for_more_time_but_not_for_less() -> None:
    assert submit_retry_delay(3, 60 * SECOND) == 60 * SECOND
    assert submit_retry_delay(3, SECOND) == 4 * SECOND
