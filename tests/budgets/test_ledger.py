"""What the ledger says of a task, whichever way it takes: nothing is charged twice, or given back twice."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.database.engine import Database, Session
from app.enums import Charge, EntryKind, ErrorCode, ResolvedBy, TaskStatus, Window
from app.models import Task
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.repository import lock_task
from app.tasks.service import erase_tasks, resolve
from app.tasks.transitions import Failure
from app.upstream.types import Report, ReportedClip, Stage
from tests.budgets.accounts import check_ledger, entries_of, give, kinds_of
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task, lifecycle_of

K = EntryKind
RUNNING = Report(Stage.running, "up-1")
SUCCESS = Report(Stage.succeeded, "up-1", (ReportedClip(upstream_clip_id="c1", audio_url="http://127.0.0.1:9/1"),))
FAILURE = Report(Stage.failed, "up-1", code=500, error_code=ErrorCode.upstream_failed)
REFUND = Report(Stage.failed, "up-1", code=531, error_code=ErrorCode.upstream_failed, refunded=True)
UNKNOWN = Failure(ErrorCode.outcome_unknown, None)
Step = Report | str
WAYS: Sequence[tuple[Sequence[Step], Sequence[EntryKind], tuple[int, int]]] = [
    ([RUNNING, SUCCESS, SUCCESS], [K.settle], (2500, 0)),
    ([RUNNING, FAILURE, FAILURE], [K.settle], (2500, 0)),
    ([RUNNING, REFUND, REFUND, REFUND], [K.settle, K.refund], (0, 0)),
    # Charged and given back, though no report said that it was running.
    (["send", REFUND, REFUND], [K.settle, K.refund], (0, 0)),
    (["send", "requeue", "send", RUNNING], [K.settle], (2500, 0)),
    (["send", "requeue", "cancel"], [K.release], (0, 0)),
    (["send", "reject"], [K.release], (0, 0)),
    (["cancel"], [K.release], (0, 0)),
    # What may have been charged stays reserved until it is known.
    (["send", "cancel"], [], (0, 2500)),
    (["send", "cancel", "clear"], [K.release], (0, 0)),
    (["send", "unconfirm"], [], (0, 2500)),
    (["send", "unconfirm", "give up"], [], (0, 2500)),
    (["unconfirm"], [], (0, 2500)),
    (["send", "unconfirm", "give up", SUCCESS], [K.settle], (2500, 0)),
    (["send", "unconfirm", "give up", REFUND, REFUND], [K.settle, K.refund], (0, 0)),
    (["send", "unconfirm", RUNNING, "cancel", FAILURE, REFUND, REFUND], [K.settle, K.refund], (0, 0)),
    # It was charged after all, or given back what nobody knew of.
    (["send", "reject", FAILURE], [K.release, K.reserve, K.settle], (2500, 0)),
    (["cancel", REFUND, REFUND], [K.release, K.reserve, K.settle, K.refund], (0, 0)),
    (
        ["send", "unconfirm", "give up", REFUND, SUCCESS, REFUND],
        [K.settle, K.refund, K.reserve, K.settle],
        (2500, 0),
    ),
    (["send", "unconfirm", "operator fails", "operator attaches", SUCCESS], [K.settle], (2500, 0)),
]


@pytest.mark.parametrize(("steps", "kinds", "used"), WAYS, ids=lambda value: None)
async def test_ledger_follows_a_task(
    database: Database, steps: Sequence[Step], kinds: Sequence[EntryKind], used: tuple[int, int]
) -> None:
    key_id = await add_key(database)
    task = await add_task(database, key_id)
    for minute, step in enumerate(steps):
        await take(database, task.id, step, MORNING + timedelta(minutes=minute))

    account = await check_ledger(database, key_id)
    assert await kinds_of(database, key_id) == [K.reserve, *kinds]
    assert (account.spent, account.reserved, account.balance) == (*used, -sum(used))


async def test_what_was_reserved_yesterday_is_settled_and_given_back_yesterday(database: Database) -> None:
    key_id, tomorrow = await add_key(database), MORNING + timedelta(days=1)
    await give(database, key_id, 10)
    tasks = [(await add_task(database, key_id)).id for _ in range(3)]
    await take(database, tasks[0], RUNNING, MORNING)
    today = await add_task(database, key_id, now=tomorrow.replace(hour=0))
    found = []
    for task_id, step in ((tasks[0], REFUND), (tasks[1], "cancel"), (tasks[2], RUNNING), (today.id, RUNNING)):
        await take(database, task_id, step, tomorrow)
        account = await check_ledger(database, key_id)
        found.append((account.spent, account.reserved, account.balance))

    assert found == [(0, 2500, -7500), (0, 2500, -5000), (0, 2500, -5000), (2500, 0, -5000)]
    assert account.starts_at == tomorrow.replace(hour=0)


@pytest.mark.parametrize("window", Window)
async def test_window_of_another_kind_counts_what_the_ledger_has_of_it(database: Database, window: Window) -> None:
    key_id, noon = await add_key(database), datetime.fromisoformat("2026-03-15T12:00:00Z")
    others = [each for each in Window if each is not window]
    await give(database, key_id, 100, others[0], noon)
    steps_by_day: dict[int, list[list[Step]]] = {
        1: [[RUNNING], ["send", RUNNING, REFUND], []],
        15: [[RUNNING, SUCCESS], ["cancel"], [], ["cancel", FAILURE], [RUNNING, REFUND], ["send", "unconfirm"]],
    }
    for day, ways in steps_by_day.items():
        for steps in ways:
            task = await add_task(database, key_id, now=noon.replace(day=day))
            for step in steps:
                await take(database, task.id, step, noon.replace(day=day))
    # Given back today, of another day.
    early = await add_task(database, key_id, now=noon.replace(month=2))
    await take(database, early.id, "cancel", noon)

    await give(database, key_id, 100, window, noon)

    account = await check_ledger(database, key_id)
    by_day, by_month = (5000, 5000), (7500, 7500)
    assert (account.spent, account.reserved) == (by_day if window is Window.day else by_month)


async def test_erased_task_keeps_its_entries(database: Database) -> None:
    key_id = await add_key(database)
    task = await add_task(database, key_id, TaskStatus.succeeded)
    async with database.transaction() as (session, now):
        await erase_tasks(session, [await session.get_one(Task, task.id)], now)

    assert await kinds_of(database, key_id, task.id) == [K.reserve, K.settle]
    await check_ledger(database, key_id)


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger_entries SET credits = 0", "DELETE FROM ledger_entries"], ids=["update", "delete"]
)
async def test_ledger_is_only_added_to(database: Database, statement: str) -> None:
    key_id = await add_key(database)
    await add_task(database, key_id)

    with pytest.raises(DBAPIError, match="append-only"):
        async with database.writes.begin() as session:
            await session.execute(text(statement))

    assert [entry.credits for entry in await entries_of(database, key_id)] == [-2500]


async def test_rolled_back_transaction_leaves_no_entry_for_the_next_one(database: Database) -> None:
    key_id = await add_key(database)
    first, second = [await add_task(database, key_id) for _ in range(2)]
    lifecycle = lifecycle_of(database)
    async with database.writes() as session:
        for task_id, ends in ((first.id, session.rollback), (second.id, session.commit)):
            task = await lock_task(session, task_id)
            assert task is not None
            lifecycle.cancel(session, task, MORNING)
            await ends()

    assert await kinds_of(database, key_id, first.id) == [K.reserve]
    assert await kinds_of(database, key_id, second.id) == [K.reserve, K.release]
    await check_ledger(database, key_id)


async def take(database: Database, task_id: str, step: Step, now: datetime) -> None:
    """Let a task take a step, in a transaction of its own."""
    lifecycle = lifecycle_of(database)
    async with database.writes.begin() as session:
        task = await lock_task(session, task_id)
        assert task is not None
        if isinstance(step, Report):
            await lifecycle.apply_report(session, task, step, now, ResolvedBy.callback)
        elif step == "send":
            task.status, task.charge, task.submitted_at = TaskStatus.submitting, Charge.possible, now
        elif step.startswith("operator"):
            status = TaskStatus.failed if step == "operator fails" else TaskStatus.generating
            await resolve(lifecycle, session, task, status, "up-1", now)
        else:
            _STEPS[step](lifecycle, session, task, now)


_STEPS: dict[str, Callable[[TaskLifecycle, Session, Task, datetime], None]] = {
    "requeue": lambda lifecycle, session, task, now: lifecycle.requeue(session, task, now, now),
    "reject": lambda lifecycle, session, task, now: lifecycle.reject(
        session, task, Failure(ErrorCode.invalid_request, None), now
    ),
    "cancel": lambda lifecycle, session, task, now: lifecycle.cancel(session, task, now),
    "clear": lambda lifecycle, session, task, now: lifecycle.clear_charge(session, task, now),
    "unconfirm": lambda lifecycle, session, task, now: lifecycle.mark_unconfirmed(session, task, now),
    "give up": lambda lifecycle, session, task, now: lifecycle.fail(session, task, UNKNOWN, now),
}
