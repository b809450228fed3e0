"""Which step a task may take next: the table from the other side."""

from app.enums import EventType, TaskStatus
from app.tasks.transitions import EVENT_BY_STATUS, FINAL, NEXT, REVIVABLE, can_move

S = TaskStatus
# From where each state can be reached.
BEFORE: dict[S, set[S]] = {
    S.queued: {S.submitting, S.unconfirmed},
    S.submitting: {S.queued},
    S.unconfirmed: {S.queued, S.submitting},
    S.generating: {S.queued, S.submitting, S.unconfirmed},
    S.succeeded: {S.generating},
    S.failed: {S.queued, S.submitting, S.unconfirmed, S.generating},
    S.canceled: {S.queued, S.submitting, S.unconfirmed, S.generating},
}


def test_every_transition_is_allowed_or_not_as_the_table_says() -> None:
    allowed = {new: {current for current in S if can_move(current, new)} for new in S}

    assert allowed == BEFORE


def test_every_state_is_in_the_table() -> None:
    assert set(NEXT) == set(S)


def test_three_states_are_final() -> None:
    assert {S.succeeded, S.failed, S.canceled} == FINAL


def test_what_the_upstream_has_never_goes_back_into_the_queue() -> None:
    assert not can_move(S.generating, S.queued)


def test_only_what_we_gave_up_ourselves_can_be_revived() -> None:
    assert {code.value for code in REVIVABLE} == {"outcome_unknown", "deadline_exceeded"}


def test_every_step_that_a_caller_waits_for_has_an_event() -> None:
    untold = set(S) - set(EVENT_BY_STATUS)

    assert untold == {S.queued, S.submitting}
    assert set(EventType) - set(EVENT_BY_STATUS.values()) >= {EventType.task_created, EventType.task_progressed}
