"""Responses that come after their row was settled without them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event, func, select, text, update
from structlog.testing import capture_logs

from app.auth.callers import Caller
from app.database.engine import Session
from app.enums import Charge, EntryKind, ErrorCode, TaskStatus
from app.models import PaceSlot, SpentCharge, Task
from app.services import Services
from app.tasks.repository import lock_task
from app.workers.poll import poll_loop
from app.workers.runner import Claimed, Loop, run_loop
from app.workers.submit import submit_loop
from tests.budgets.accounts import check_ledger, kinds_of
from tests.support.api import client_of, create_task, until_final, until_status
from tests.support.clock import MORNING, Clock
from tests.support.processes import Processes
from tests.support.rows import add_key, add_task, event_types, reread
from tests.support.sandbox import serve_sandbox, submits_at
from tests.support.service import serve, services_of
from tests.support.wait import eventually

S = TaskStatus
DAY = timedelta(days=1)


class TaskState(NamedTuple):
    """What a task shows after the answer."""

    status: TaskStatus
    charge: Charge
    error: ErrorCode | None = None


GENERATING = TaskState(S.generating, Charge.charged)
QUEUED = TaskState(S.queued, Charge.none)
REFUSED = TaskState(S.failed, Charge.none, ErrorCode.invalid_request)
UNCONFIRMED = TaskState(S.unconfirmed, Charge.possible)
EXPIRED = TaskState(S.failed, Charge.charged, ErrorCode.outcome_unknown)
CANCELED = TaskState(S.canceled, Charge.charged)


@dataclass(frozen=True)
class LateSubmit:
    """A task that a submit worker has claimed, and whose POST is made when a test says so."""

    services: Services
    sandbox_url: str
    loop: Loop[Any]
    claimed: Any
    task_id: str

    @asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[tuple[Session, Task, datetime]]:
        """A transaction of another worker, with the task locked."""
        async with self.services.database.writes.begin() as session:
            task = await lock_task(session, self.task_id)
            assert task is not None
            yield session, task, await self.services.database.now(session)

    async def answered(self) -> TaskState:
        """Make the POST and settle its answer; return what the task shows then."""
        await self.loop.work(self.claimed)
        assert len(await submits_at(self.sandbox_url)) == 1
        task = await reread(self.services.database, self.task_id)
        assert (task.upstream_task_id is not None) == (task.charge is Charge.charged)
        return TaskState(task.status, task.charge, task.error_code)


@asynccontextmanager
async def late_submit(
    database_url: str, fault: str, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[LateSubmit]:
    async with (
        serve_sandbox(fault="drop-callbacks") as sandbox_url,
        services_of(database_url, clock, upstream_url=sandbox_url, **settings) as services,
    ):
        database = services.database
        async with database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, await database.now(session))
        task = await add_task(database, await add_key(database), prompt=f"rain {fault}")
        loop = submit_loop(services)
        [claimed] = (await loop.claim(1)).items
        yield LateSubmit(services, sandbox_url, loop, claimed, task.id)


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("", GENERATING),
        ("[fault: code-405]", QUEUED),
        ("[fault: code-429]", QUEUED),
        ("[fault: code-413]", REFUSED),
        ("[fault: accept-then-500]", UNCONFIRMED),
    ],
)
async def test_answer_counts_after_the_lease_has_ended(database_url: str, fault: str, state: TaskState) -> None:
    async with late_submit(database_url, fault) as submit:
        async with submit.meanwhile() as (session, task, now):
            submit.services.lifecycle.mark_unconfirmed(session, task, now)

        assert await submit.answered() == state


async def test_answer_that_the_database_refuses_gives_its_place_back_and_is_logged(database_url: str) -> None:
    async with late_submit(database_url, "") as submit:
        async with submit.services.database.writes.begin() as session:
            # As after a migration for a release that knows no such table.
            await session.execute(text("ALTER TABLE events RENAME TO gone"))
        stopping = asyncio.Event()

        async def claim(_limit: int) -> Claimed[Any]:
            stopping.set()
            return Claimed([submit.claimed])

        with capture_logs() as lines:
            async with asyncio.timeout(10):
                await run_loop(replace(submit.loop, claim=claim), stopping)

    assert [(line["event"], line["log_level"]) for line in lines if line["event"] != "commit_retried"] == [
        ("submit", "info"),
        ("work_failed", "error"),
    ]
    assert len(lines[0]["upstream_task_id"]) == 32
    assert "soundpost migrate" in lines[-1]["reason"]


async def test_answer_is_stored_once_the_database_is_there_again(database_url: str) -> None:
    async with late_submit(database_url, "") as submit:
        database = submit.services.database
        async with database.writes.begin() as session:
            await session.execute(text("ALTER TABLE events RENAME TO gone"))
        settling = asyncio.ensure_future(submit.loop.work(submit.claimed))
        with capture_logs() as lines:
            await eventually(lambda: any(line["event"] == "commit_retried" for line in lines))
            async with database.writes.begin() as session:
                await session.execute(text("ALTER TABLE gone RENAME TO events"))
            await settling

        assert (await reread(database, submit.task_id)).status is S.generating


@pytest.mark.parametrize(
    ("fault", "state"), [("", EXPIRED), ("[fault: code-413]", EXPIRED._replace(charge=Charge.none))]
)
async def test_answer_settles_the_charge_of_an_expired_task(database_url: str, fault: str, state: TaskState) -> None:
    async with late_submit(database_url, fault) as submit:
        async with submit.meanwhile() as (session, task, now):
            submit.services.lifecycle.mark_unconfirmed(session, task, now)
            assert submit.services.lifecycle.expire_if_overdue(session, task, now + DAY)

        assert await submit.answered() == state


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("", CANCELED),
        ("[fault: code-400]", CANCELED._replace(charge=Charge.none)),
        ("[fault: accept-then-500]", CANCELED._replace(charge=Charge.possible)),
    ],
)
async def test_answer_settles_the_charge_of_a_canceled_task(database_url: str, fault: str, state: TaskState) -> None:
    async with late_submit(database_url, fault) as submit:
        async with submit.meanwhile() as (session, task, now):
            submit.services.lifecycle.cancel(session, task, now)

        assert await submit.answered() == state


@pytest.mark.parametrize(
    ("fault", "charge", "last"),
    [
        ("", Charge.charged, EntryKind.settle),
        ("[fault: code-400]", Charge.none, EntryKind.release),
        ("[fault: code-405]", Charge.none, EntryKind.release),
        ("[fault: accept-then-500]", Charge.possible, EntryKind.reserve),
    ],
)
async def test_answer_settles_the_charge_of_an_erased_task(
    database_url: str, fault: str, charge: Charge, last: EntryKind
) -> None:
    async with late_submit(database_url, fault) as submit:
        database, key_id = submit.services.database, submit.claimed.task.api_key_id
        caller = Caller(key_id, is_admin=False)
        await submit.services.tasks.cancel(caller, submit.task_id)
        await submit.services.tasks.erase(caller, submit.task_id)
        await submit.loop.work(submit.claimed)

        async with database.reads() as session:
            spent = await session.get_one(SpentCharge, submit.task_id)
        assert (spent.charge, (await kinds_of(database, key_id, submit.task_id))[-1]) == (charge, last)
        assert (await check_ledger(database, key_id)).charged == (2500 if charge is Charge.charged else 0)


async def test_late_acceptance_of_an_adopted_task_changes_nothing(database_url: str) -> None:
    async with late_submit(database_url, "") as submit, client_of(submit.sandbox_url, None) as sandbox:

        async def is_created() -> bool:
            return bool((await sandbox.get("/tasks")).json())

        async with submit.meanwhile() as (session, task, now):
            settling = asyncio.ensure_future(submit.loop.work(submit.claimed))
            await eventually(is_created)
            [created] = (await sandbox.get("/tasks")).json()
            await submit.services.lifecycle.begin_generating(session, task, created["task_id"], now)
        await settling

        after = await reread(submit.services.database, submit.task_id)
        assert (after.version, after.due_at, after.upstream_task_id) == (task.version, task.due_at, created["task_id"])


async def test_answer_that_waited_for_its_row_has_the_time_after_the_wait(database_url: str) -> None:
    clock = Clock()
    async with late_submit(database_url, "", clock) as submit:
        database = submit.services.database
        settled = await _settled_after_a_wait(submit, submit.loop, submit.claimed, clock)
        assert (settled.status, settled.updated_at) == (S.generating, clock.now)

        clock.advance(hours=1)
        polls = poll_loop(submit.services)
        async with database.writes.begin() as session:
            # The clock of the pace stood still as well.
            await session.execute(update(PaceSlot).values(free_at=MORNING))
        [poll] = (await polls.claim(1)).items
        settled = await _settled_after_a_wait(submit, polls, poll, clock)
        # Whether the sound was ready or not: the deadline has passed.
        assert settled.completed_at == clock.now


async def _settled_after_a_wait(submit: LateSubmit, loop: Loop[Any], claimed: Any, clock: Clock) -> Task:
    """The task, settled by a transaction that waited a minute for another one."""
    database = submit.services.database
    async with submit.meanwhile():
        reads = clock.reads
        settling = asyncio.ensure_future(loop.work(claimed))
        if database.url.startswith("postgresql"):
            waiting = select(func.count()).select_from(text("pg_stat_activity")).where(text("wait_event_type = 'Lock'"))

            async def is_waiting() -> bool:
                async with database.reads() as session:
                    in_the_database = await session.scalar(waiting.where(text("datname = current_database()")))
                # Or it has met the lock, and comes back.
                return bool(in_the_database) or clock.reads > reads + 1

            await eventually(is_waiting)
        clock.advance(minutes=1)
    await settling
    return await reread(database, submit.task_id)


async def test_late_refusal_of_an_earlier_submit_settles_nothing(database_url: str) -> None:
    async with late_submit(database_url, "[fault: code-405]") as submit:
        async with submit.meanwhile() as (session, task, now):
            # It was submitted once more, and the answer to that is lost.
            task.submitted_at = now
            submit.services.lifecycle.mark_unconfirmed(session, task, now)

        assert await submit.answered() == UNCONFIRMED


async def test_expired_task_is_polled_and_revived(database_url: str, tmp_path: Path) -> None:
    settings = {"task_deadline": "2", "poll_after": "1", "poll_every": "0.5"}
    with Processes(tmp_path, **settings) as processes:
        sandbox = await processes.sandbox(rate=1000)
        service = await processes.serve(database_url, sandbox.url, public_url=None)
        async with client_of(service.url) as client:
            task_id = (await create_task(client, "rain [fault: poll-500=5]"))["id"]
            given_up = await until_final(client, task_id)
            found = await until_status(client, task_id, "succeeded", within=60)
            events = (await client.get(f"/v1/tasks/{task_id}/events")).json()["items"]

    assert given_up["error"]["code"] == "deadline_exceeded"
    assert (found["error"], found["resolved_by"], len(found["clips"])) == (None, "poll", 2)
    kinds = [event["type"] for event in events if event["type"] not in ("task.progressed", "clip.archived")]
    assert kinds == ["task.created", "task.submitted", "task.failed", "task.revived", "task.succeeded"]


async def test_expired_task_is_polled_no_more_once_the_upstream_has_deleted_it(database_url: str) -> None:
    async with services_of(database_url) as services:
        columns = {"error_code": ErrorCode.deadline_exceeded, "upstream_task_id": "u1", "due_at": MORNING}
        key = await add_key(services.database)
        old = await add_task(services.database, key, S.failed, MORNING, **columns, submitted_at=MORNING)
        now = datetime.now(UTC)
        young = await add_task(services.database, key, S.failed, MORNING, **columns, submitted_at=now - 13 * DAY)
        async with services.database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, now)
        loop = poll_loop(services)

        for poll in (await loop.claim(10)).items:
            await loop.work(poll)

        after = [await reread(services.database, task.id) for task in (old, young)]
    assert after[0].due_at is None
    assert after[1].due_at is not None
    assert after[1].due_at > now


async def test_row_that_cannot_be_expired_does_not_block_the_others(database_url: str) -> None:
    async with serve(database_url, runs_workers=True, submit_deadline=60) as service:
        lost = {"submitted_at": MORNING, "charge": Charge.possible}
        # Such a URL is refused where it comes in; the row stands for whatever else a step may stumble over.
        broken = await service.add_task(S.unconfirmed, **lost, due_at=MORNING, webhook_url="http://a:b/")
        sound = await service.add_task(S.unconfirmed, **lost, due_at=MORNING + DAY)

        async def is_judged() -> bool:
            return (await reread(service.database, sound.id)).status is S.failed

        await eventually(is_judged)
        assert (await reread(service.database, broken.id)).status is S.unconfirmed
        assert await event_types(service.database, sound.id) == ["task.created", "task.failed"]


async def test_claim_costs_no_transaction_while_no_slot_can_be_free(database_url: str) -> None:
    # One request a minute, and the next is known to be far away.
    async with late_submit(database_url, "", upstream_rate="1/60") as submit:
        transactions = 0

        def count(*_: object) -> None:
            nonlocal transactions
            transactions += 1

        event.listen(submit.services.database.session_class, "after_begin", count)
        claims = [await submit.loop.claim(1) for _ in range(100)]

    assert transactions == 0
    assert [claimed.items for claimed in claims] == [()] * 100
    assert all(claimed.idle and claimed.idle <= timedelta(seconds=1) for claimed in claims)


async def test_claim_finds_a_slot_as_soon_as_it_is_free(database_url: str) -> None:
    async with late_submit(database_url, "", upstream_rate="1/0.2") as submit:
        second = await add_task(submit.services.database, submit.claimed.task.api_key_id)
        await submit.loop.work(submit.claimed)

        async def claimed() -> bool:
            items = (await submit.loop.claim(1)).items
            return [each.task.id for each in items] == [second.id]

        await eventually(claimed)
