"""Deleted tasks take their rows and files with them, except shared files; expired ones are deleted in batches."""

import asyncio
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from app.budgets.usage import add_up_spent
from app.database.base import Base
from app.database.claims import Claim
from app.database.engine import Database, Session
from app.enums import CallbackOutcome, Charge, EventType, Period, TaskStatus, WebhookType
from app.models import (
    ApiKey,
    Callback,
    Clip,
    Delivery,
    Event,
    IdempotencyKey,
    PeriodicJob,
    SpentCharge,
    StoredObject,
    Task,
    UsageSum,
)
from app.retention import Retention, remove_due_files
from app.storage import references
from app.storage.store import Storage
from app.workers.periodic import periodic_loop, prepare_jobs
from tests.support.processes import Processes
from tests.support.rows import add_key, add_task
from tests.support.service import Service, serve_with_sandbox, services_of
from tests.support.wait import eventually

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
# How many days old each is, and whether it is still to be delivered.
DELIVERIES = [(91, False), (91, True), (89, False)]


def files_in(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in (folder / "audio").rglob("*.wav"))


async def test_erased_task_takes_its_files_with_it(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task, kept = await asyncio.gather(service.archived("rain"), service.archived("wind"))
        answer = await service.client.delete(f"/v1/tasks/{task['id']}")
        await eventually(lambda: len(files_in(tmp_path)) == len(kept["clips"]))
        gone = await service.client.get(task["clips"][0]["audio_url"])
        left = await service.client.get(kept["clips"][0]["audio_url"])

    assert (answer.status_code, gone.status_code, left.status_code) == (204, 404, 200)


async def test_file_that_two_tasks_share_goes_with_the_second(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        first = await service.archived("the same rain")
        second = await service.archived("the same rain")
        await service.client.delete(f"/v1/tasks/{first['id']}")
        await eventually(lambda: no_file_is_due(service))
        still_there = await service.client.get(second["clips"][0]["audio_url"])
        await service.client.delete(f"/v1/tasks/{second['id']}")
        await eventually(lambda: files_in(tmp_path) == [])

    assert still_there.status_code == 200


async def test_file_that_is_being_removed_cannot_be_referenced(database_url: str) -> None:
    database = Database(database_url)
    try:
        async with database.writes.begin() as session:
            await references.reserve(session, ["sha256/ab/cd.wav"])
            await references.release(session, ["sha256/ab/cd.wav"], NOW)
        async with database.writes.begin() as session:
            claimed = await references.claim_abandoned(session, Claim(NOW, timedelta(minutes=1), 10))
        async with database.writes.begin() as session:
            is_ours_meanwhile = await references.reserve(session, ["sha256/ab/cd.wav"])
            await references.forget(session, claimed[0])
        async with database.writes.begin() as session:
            is_ours_afterwards = await references.reserve(session, ["sha256/ab/cd.wav"])
    finally:
        await database.close()

    assert [row.key for row in claimed] == ["sha256/ab/cd.wav"]
    assert (is_ours_meanwhile, is_ours_afterwards) == (set(), {"sha256/ab/cd.wav"})


async def test_file_that_a_clip_refers_to_is_not_removed(database_url: str, tmp_path: Path) -> None:
    database, storage = Database(database_url), Storage(f"file:{tmp_path}/audio")
    try:
        async with database.writes.begin() as session:
            await references.reserve(session, ["sha256/ab/cd.wav"])
            session.add(task_of(await key_of(session), NOW, clips=[clip_of("sha256/ab/cd.wav")]))
            await session.flush()
            await references.release(session, ["sha256/ab/cd.wav"], NOW)
        removed = await remove_due_files(database, storage)
        async with database.reads() as session:
            due = await session.scalar(select(StoredObject.due_at))
    finally:
        await database.close()

    assert (removed, due) == (0, None)


async def test_old_tasks_are_erased_in_batches_with_all_that_is_theirs(database_url: str) -> None:
    database, retention = Database(database_url), Retention(days=90, audit_days=365)
    try:
        async with database.writes.begin() as session:
            key = await key_of(session)
            session.add_all(task_of(key, NOW - timedelta(days=91)) for _ in range(150))
            session.add_all(task_of(key, NOW - timedelta(days=89)) for _ in range(3))
            session.add(task_of(key, None))
            await session.flush()
            await add_history(session)
            session.add_all(delivery_of(key, *each) for each in DELIVERIES)
            session.add(
                IdempotencyKey(api_key_id=key, key="k", fingerprint="f", task_id="", created_at=NOW - timedelta(days=2))
            )
        async with database.reads() as session:
            counts = await retention.count(session, NOW)
            nothing = await Retention(days=0, audit_days=365).count(session, NOW)
        batches = 1
        while await erase_batch(database, retention):
            batches += 1
        async with database.reads() as session:
            left = {kind: await count_of(session, kind) for kind in (Task, Event, Callback, Delivery, IdempotencyKey)}
    finally:
        await database.close()

    assert counts == {
        "tasks": 150,
        "events": 150,
        "callbacks": 150,
        "deliveries": 1,
        "audio": 0,
        "idempotency keys": 1,
        "audit entries": 0,
    }
    assert nothing == {**dict.fromkeys(counts, 0), "idempotency keys": 1}
    assert batches == 2
    assert left == {Task: 4, Event: 4, Callback: 4, Delivery: 2, IdempotencyKey: 0}


async def test_backlog_is_deleted_batch_after_batch_without_a_pause(database_url: str) -> None:
    async with services_of(database_url) as services:
        async with services.database.transaction() as (session, now):
            key = await key_of(session)
            session.add_all(task_of(key, now - timedelta(days=91)) for _ in range(150))
            await prepare_jobs(session, now)
        loop = periodic_loop(services)
        rung = []
        for _ in range(2):
            loop.wakeup.clear()
            [job] = (await loop.claim(1)).items
            await loop.work(job)
            rung.append(loop.wakeup.is_set())
        async with services.database.reads() as session:
            left = await count_of(session, Task)

    assert (rung, left) == ([True, False], 0)


async def test_usage_of_tasks_at_rest_is_added_up_every_five_minutes(database_url: str) -> None:
    async with services_of(database_url) as services:
        async with services.database.transaction() as (session, now):
            await prepare_jobs(session, now)
        key = await add_key(services.database)
        for ago in (9, 11, 12):
            await add_task(services.database, key, TaskStatus.succeeded, now - timedelta(minutes=ago))
        loop = periodic_loop(services)
        [job] = (await loop.claim(1)).items
        await loop.work(job)
        async with services.database.reads() as session:
            added_up = await session.scalar(select(func.sum(UsageSum.tasks)).where(UsageSum.period == Period.day))
            job = await session.get_one(PeriodicJob, job.name)

    assert added_up == 2
    assert job.due_at is not None
    assert timedelta(minutes=5) <= job.due_at - now <= timedelta(minutes=6)


async def test_every_kind_is_deleted_in_batches(database_url: str) -> None:
    database, retention = Database(database_url), Retention(days=90, audit_days=365)
    old, batches = NOW - timedelta(days=100), 1
    try:
        async with database.writes.begin() as session:
            key = await key_of(session)
            for number in range(150):
                text = f"{number:032}"
                spent = {"charge": Charge.charged, "posts": 1, "created_at": old}
                session.add(SpentCharge(task_id=text, api_key_id=key, **spent))
                session.add(delivery_of(key, 100, False))
                session.add(IdempotencyKey(api_key_id=key, key=text, fingerprint="f", task_id=text, created_at=old))
        async with database.writes.begin() as session:
            added_up = [await add_up_spent(session, 100) for _ in range(2)]
            assert await retention.erase_batch(session, NOW)
            halfway = [await count_of(session, kind) for kind in (SpentCharge, Delivery, IdempotencyKey)]
        while await erase_batch(database, retention):
            batches += 1
        async with database.reads() as session:
            left = [await count_of(session, kind) for kind in (SpentCharge, Delivery, IdempotencyKey)]
            kept = await session.scalar(select(func.sum(UsageSum.tasks)).where(UsageSum.period == Period.day))
    finally:
        await database.close()

    assert (added_up, halfway, left, kept) == ([100, 50], [50, 50, 50], [0, 0, 0], 150)


async def test_tasks_go_after_their_deliveries_which_are_deleted_in_batches(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.retention.MAX_DELIVERIES", 4)
    database, retention = Database(database_url), Retention(days=90, audit_days=365)
    left = []
    try:
        async with database.writes.begin() as session:
            key = await key_of(session)
            task = task_of(key, NOW - timedelta(days=91))
            session.add(task)
            await session.flush()
            for _ in range(6):
                delivery = delivery_of(key, 91, True)
                delivery.task_id = task.id
                session.add(delivery)
        for _ in range(2):
            is_more = await erase_batch(database, retention)
            async with database.reads() as session:
                left.append((is_more, await count_of(session, Task), await count_of(session, Delivery)))
    finally:
        await database.close()

    assert left == [(True, 1, 2), (False, 0, 0)]


async def test_old_rows_are_found_by_index(database_url: str) -> None:
    database = Database(database_url)
    statements: list[Any] = []
    try:
        async with database.writes.begin() as session:
            connection = await session.connection()
            if connection.dialect.name == "postgresql":
                # The tables are empty: otherwise the planner would read them whole.
                await connection.exec_driver_sql("SET enable_seqscan = off")
            keep = partial(keep_statement, statements)
            event.listen(connection.sync_connection, "before_cursor_execute", keep)
            await Retention(days=90, audit_days=365).erase_batch(session, NOW)
            event.remove(connection.sync_connection, "before_cursor_execute", keep)
            explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
            plans = [
                "\n".join(str(row) for row in await connection.exec_driver_sql(explain + statement, parameters))
                for statement, parameters in statements
            ]
    finally:
        await database.close()

    assert len(plans) >= 4
    assert [plan for plan in plans if re.search(r"Seq Scan|SCAN [a-z]", plan)] == []


async def test_service_deletes_old_tasks_periodically(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived()
        await age(service.database, timedelta(days=91))
    async with serve_with_sandbox(database_url, tmp_path) as service:

        async def is_gone() -> bool:
            return (await service.client.get(f"/v1/tasks/{task['id']}")).status_code == 404

        await eventually(is_gone)
        await eventually(lambda: files_in(tmp_path) == [])


async def test_prune_prints_what_it_would_delete_and_then_deletes_it(migrated_sqlite: Path, tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with serve_with_sandbox(database_url, tmp_path) as service:
        await service.archived()
    # A running service would delete it.
    database = Database(database_url)
    await age(database, timedelta(days=91))
    await database.close()

    with Processes(tmp_path, database_url=database_url, storage_url=f"file:{tmp_path}/audio") as processes:
        dry_run = await processes.run("prune", "--dry-run")
        before = files_in(tmp_path)
        done = await processes.run("prune")

    assert (dry_run.code, done.code) == (0, 0)
    assert "1 tasks would be deleted" in dry_run.stdout
    assert "2 audio would be deleted" in dry_run.stdout
    assert "1 tasks deleted" in done.stdout
    assert (len(before), files_in(tmp_path)) == (2, [])


async def age(database: Database, by: timedelta) -> None:
    async with database.writes.begin() as session:
        await session.execute(update(Task).values(completed_at=datetime.now(UTC) - by))
        await session.execute(update(PeriodicJob).values(due_at=datetime.now(UTC)))


async def erase_batch(database: Database, retention: Retention) -> bool:
    async with database.writes.begin() as session:
        return await retention.erase_batch(session, NOW)


def keep_statement(statements: list[Any], *called: Any) -> None:
    """For the event of an engine: keep the statement and its parameters."""
    _, _, statement, parameters, _, _ = called
    statements.append((statement, parameters))


async def no_file_is_due(service: Service) -> bool:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).where(StoredObject.due_at.isnot(None))) == 0


async def count_of(session: Session, kind: type[Base]) -> int | None:
    return await session.scalar(select(func.count()).select_from(kind))


async def key_of(session: Session) -> str:
    key = ApiKey(name="tests", key_hash="x" * 64, created_at=NOW)
    session.add(key)
    await session.flush()
    return key.id


def task_of(api_key_id: str, completed_at: datetime | None, clips: Sequence[Clip] = ()) -> Task:
    return Task(
        api_key_id=api_key_id,
        status=TaskStatus.succeeded if completed_at else TaskStatus.generating,
        prompt="rain",
        model="V5",
        sound_loop=False,
        sound_key="Any",
        grab_lyrics=False,
        labels={},
        sound_digest="",
        created_at=NOW - timedelta(days=100),
        updated_at=NOW,
        completed_at=completed_at,
        clips=list(clips),
    )


async def add_history(session: Session) -> None:
    """Give every task one event and one callback."""
    for task_id in await session.scalars(select(Task.id)):
        session.add(Event(task_id=task_id, version=1, type=EventType.task_created, created_at=NOW, data={}))
        session.add(Callback(task_id=task_id, received_at=NOW, headers={}, body=b"", outcome=CallbackOutcome.applied))


def delivery_of(api_key_id: str, days: int, is_due: bool) -> Delivery:
    """A delivery of a webhook that is about no task."""
    return Delivery(
        api_key_id=api_key_id,
        event_id="0" * 32,
        event_type=WebhookType.webhook_test,
        url="https://hooks.example",
        host="hooks.example",
        lane="hooks.example",
        body=b"{}",
        due_at=NOW if is_due else None,
        created_at=NOW - timedelta(days=days),
    )


def clip_of(key: str) -> Clip:
    return Clip(index=0, storage_key=key, created_at=NOW)
