"""A model that the upstream refuses is found by a few tasks, and tried again by one at a time."""

from datetime import timedelta

import pytest

from app.upstream.refusals import (
    AT_ONCE,
    FORGOTTEN_AFTER,
    MAX_RECHECKS,
    MAX_REFUSALS,
    Refusals,
    is_about_model,
)
from app.upstream.types import Outcome, Result
from tests.support.clock import MORNING

RECHECK = timedelta(seconds=30)
REFUSED: Result[str] = Result(Outcome.invalid, code=422, message="The Model V9 is not supported")
TAKEN: Result[str] = Result(Outcome.ok, "up-1")


@pytest.mark.parametrize(
    ("outcome", "message", "is_about"),
    [
        (Outcome.invalid, "model is invalid, allowed: V5, V6", True),
        (Outcome.invalid, "Unsupported MODEL", True),
        (Outcome.invalid, "The prompt is too long for this model", False),
        (Outcome.invalid, "Invalid parameters", False),
        (Outcome.invalid, None, False),
        (Outcome.ambiguous, "The model crashed", False),
        (Outcome.throttled, "The model is busy", False),
    ],
)
def test_refusal_is_about_the_model_where_it_says_so(outcome: Outcome, message: str | None, is_about: bool) -> None:
    assert is_about_model(Result(outcome, code=400, message=message)) is is_about


def test_third_task_in_a_row_makes_a_model_refused() -> None:
    refusals = Refusals({}, RECHECK)

    found = []
    for number in range(MAX_REFUSALS):
        refusals.note(f"task {number}", "V9", REFUSED, MORNING)
        found.append(refusals.is_refused("V9", MORNING))

    assert found == [False, False, True]
    [model] = refusals.refused(MORNING)
    assert (model.name, model.since, model.message) == ("V9", MORNING, "The Model V9 is not supported")
    assert not refusals.is_refused("V5", MORNING)


def test_one_task_alone_makes_no_model_refused() -> None:
    refusals = Refusals({}, RECHECK)
    for _ in range(10):
        refusals.note("task", "V9", REFUSED, MORNING)

    assert not refusals.is_refused("V9", MORNING)


def test_success_in_between_begins_the_count_anew_and_ends_a_refusal() -> None:
    refusals = Refusals({}, RECHECK)
    for task_id in ("a", "b"):
        refusals.note(task_id, "V9", REFUSED, MORNING)
    refusals.note("c", "V9", TAKEN, MORNING)
    for task_id in ("d", "e"):
        refusals.note(task_id, "V9", REFUSED, MORNING)
    before = refusals.is_refused("V9", MORNING)
    refusals.note("f", "V9", REFUSED, MORNING)
    refusals.note("other model", "V5", TAKEN, MORNING)
    refused = refusals.is_refused("V9", MORNING)
    refusals.note("g", "V9", TAKEN, MORNING)

    assert (before, refused, refusals.refused(MORNING)) == (False, True, [])


def test_one_task_a_recheck_is_sent_to_see_whether_it_is_still_refused() -> None:
    refusals, now = _refused(), MORNING

    sent = []
    for _ in range(121):
        sent += [(now - MORNING).seconds] if refusals.take_probe("V9", now) else []
        assert not refusals.take_probe("V9", now)
        now += timedelta(seconds=1)

    assert sent == [30, 60, 90, 120]


def test_waiting_tasks_are_due_with_the_next_probe_and_many_of_them_later() -> None:
    refusals = _refused()

    due = [(refusals.wait_until("V9", MORNING) - MORNING) / RECHECK for _ in range(AT_ONCE * (MAX_RECHECKS + 3))]

    assert due[:AT_ONCE] == [1] * AT_ONCE
    assert due[AT_ONCE] == 2
    assert max(due) == 1 + MAX_RECHECKS
    assert due == sorted(due)


def test_refusal_that_nobody_has_tried_again_is_forgotten() -> None:
    refusals, later = _refused(), MORNING + RECHECK + FORGOTTEN_AFTER

    assert refusals.is_refused("V9", later - timedelta(seconds=1))
    assert not refusals.is_refused("V9", later)
    refusals.note("new", "V9", REFUSED, later)
    assert not refusals.is_refused("V9", later)


def test_stored_refusals_are_the_same_again() -> None:
    refusals = _refused()

    again = Refusals(refusals.stored, RECHECK)

    assert again.refused(MORNING) == refusals.refused(MORNING)
    assert again.stored == refusals.stored


def _refused() -> Refusals:
    refusals = Refusals({}, RECHECK)
    for number in range(MAX_REFUSALS):
        refusals.note(f"task {number}", "V9", REFUSED, MORNING)
    return refusals
