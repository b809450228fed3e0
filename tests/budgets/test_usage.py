"""What a key's tasks cost: each counted once, under the charge that it has now."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.budgets.usage import add_up_spent, forget_spent, sum_by_day, sum_usage
from app.enums import Charge, ErrorCode, Period, ResolvedBy, TaskStatus
from app.models import ApiKey, SpentCharge, Task, UsageSum
from app.retention import Retention
from app.tasks.repository import lock_task
from app.tasks.service import erase_tasks
from app.upstream.types import Report, ReportedClip, Stage
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task
from tests.support.service import Service

# Tasks and POSTs by day and charge.
ByDay = dict[tuple[date, Charge], tuple[int, int]]
NOTHING = {"tasks": 0, "posts": 0, "charged": 0, "refunded": 0, "possible": 0}


async def test_usage_is_zero_before_the_first_task(service: Service) -> None:
    assert await _usage(service) == NOTHING


async def test_tasks_are_counted_by_their_charge_and_posts_added_up(service: Service) -> None:
    for charge, posts in [
        (Charge.none, 0),
        (Charge.none, 3),
        (Charge.charged, 1),
        (Charge.charged, 2),
        (Charge.refunded, 1),
        (Charge.possible, 1),
    ]:
        await service.add_task(TaskStatus.failed, charge=charge, posts=posts)
    await add_task(service.database, await add_key(service.database, "another"), posts=9)

    assert await _usage(service) == {"tasks": 6, "posts": 8, "charged": 2, "refunded": 1, "possible": 1}


async def test_erased_task_has_cost_what_it_cost(service: Service) -> None:
    kept, erased = [await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=1) for _ in range(2)]
    before = await _usage(service)

    assert (await service.client.delete(f"/v1/tasks/{erased.id}")).status_code == 204

    assert await _usage(service) == before == {**NOTHING, "tasks": 2, "posts": 2, "charged": 2}
    assert (await _usage(service, until="2026-03-01T08:00:00Z")) == NOTHING
    assert (await service.client.get(f"/v1/tasks/{kept.id}")).status_code == 200


async def test_cost_outlives_the_retention_in_the_sums(service: Service) -> None:
    erased = await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=1)
    await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=2)
    await service.add_task(TaskStatus.failed, now=MORNING + timedelta(days=1), charge=Charge.refunded, posts=1)
    await service.client.delete(f"/v1/tasks/{erased.id}")
    before = await _usage(service)
    for days in (91, 92):
        await _add_up(service, MORNING + timedelta(days=days))
        async with service.database.writes.begin() as session:
            await Retention(days=90, audit_days=365).erase_batch(session, MORNING + timedelta(days=days))

    async with service.database.reads() as session:
        of_days = select(UsageSum.starts_at, UsageSum.tasks).where(UsageSum.period == Period.day)
        sums = (await session.execute(of_days.order_by(UsageSum.starts_at))).all()
        left = [await session.scalar(select(func.count()).select_from(kind)) for kind in (Task, SpentCharge)]
    assert await _usage(service) == before == {"tasks": 3, "posts": 4, "charged": 2, "refunded": 1, "possible": 0}
    assert [(day.isoformat(), tasks) for day, tasks in sums] == [
        ("2026-03-01T00:00:00+00:00", 2),
        ("2026-03-02T00:00:00+00:00", 1),
    ]
    assert left == [0, 0]
    assert (await _usage(service, since="2026-03-02T00:00:00Z"))["tasks"] == 1
    assert (await _usage(service, until="2026-03-02T00:00:00Z"))["tasks"] == 2


async def test_sums_follow_a_task_that_changes_after_it_was_added_up(service: Service) -> None:
    lifecycle, database = service.services.lifecycle, service.database
    failure = {"error_code": ErrorCode.outcome_unknown, "error_message": None}
    task = await service.add_task(TaskStatus.failed, charge=Charge.possible, posts=1, **failure)
    found = []
    refund = Report(Stage.failed, "up-1", code=531, error_code=ErrorCode.upstream_failed, refunded=True)
    success = Report(Stage.succeeded, "up-1", (ReportedClip(upstream_clip_id="c1", audio_url="http://127.0.0.1:9/1"),))
    for number, report in enumerate((None, refund, success)):
        if report is not None:
            async with database.transaction() as (session, _):
                locked = await lock_task(session, task.id)
                assert locked is not None
                await lifecycle.apply_report(session, locked, report, MORNING, ResolvedBy.callback)
        found.append(await _usage(service))
        await _add_up(service, MORNING + timedelta(hours=1 + number))
        found.append(await _usage(service))
    assert (await service.client.delete(f"/v1/tasks/{task.id}")).status_code == 204
    found.append(await _usage(service))

    one = {**NOTHING, "tasks": 1, "posts": 1}
    charges = ["possible", "possible", "refunded", "refunded", "charged", "charged", "charged"]
    assert found == [{**one, charge: 1} for charge in charges]


async def test_usage_is_exact_whatever_happens_to_tasks_and_sums(service: Service) -> None:
    rng, now, counted = random.Random(10), MORNING + timedelta(days=9), dict[str, tuple[datetime, Charge, int]]()  # noqa: S311
    ranges: list[tuple[datetime | None, datetime | None]] = [(None, None)]
    for step in range(40):
        action = rng.choice([*("place",) * 5, *("change",) * 4, "add up", "add up", "erase", "forget"])
        async with service.database.writes.begin() as session:
            tasks = (await session.scalars(select(Task).order_by(Task.id))).all()
            if action == "add up":
                await service.services.lifecycle.add_up_usage(session, now, rng.choice([1, 3, 50]))
                await add_up_spent(session, rng.choice([1, 50]))
            elif action == "forget":
                await forget_spent(session, now, 2)
            elif action == "erase" and tasks:
                await erase_tasks(session, [rng.choice(tasks)], now)
            elif action == "change":
                for task in rng.sample(tasks, min(len(tasks), 3)):
                    task.charge, task.posts = rng.choice(list(Charge)), rng.randrange(4)
                    counted[task.id] = task.created_at, task.charge, task.posts
        if action == "place":
            charge, posts, minutes = rng.choice(list(Charge)), rng.randrange(3), rng.randrange(4 * 24 * 60)
            created_at = MORNING + timedelta(minutes=minutes)
            task = await service.add_task(TaskStatus.failed, now=created_at, charge=charge, posts=posts)
            counted[task.id] = created_at, charge, posts
        if step % 5 == 0:
            ranges = [(None, None), *(_range(rng) for _ in range(2))]
        for since, until in ranges:
            expected = await _expected(service, counted, since, until)
            assert await _sum(service, since, until) == _in_all(expected), (step, action)
            assert await _sum_by_day(service, since, until) == expected, (step, action)


async def test_usage_stays_the_same_while_it_is_added_up(service: Service) -> None:
    for number in range(40):
        await service.add_task(TaskStatus.succeeded, now=MORNING + timedelta(minutes=number), posts=1)
    before, found = await _usage(service), []

    async def add_up() -> None:
        for _ in range(20):
            async with service.database.transaction() as (session, _):
                await service.services.lifecycle.add_up_usage(session, MORNING + timedelta(days=1), 2)

    adding = asyncio.create_task(add_up())
    while not adding.done():
        found.append(await _usage(service))
    await adding

    assert found
    assert all(usage == before for usage in found)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_nobody_waits_while_usage_is_added_up(service: Service) -> None:
    rested, running = [await service.add_task(TaskStatus.generating, upstream_task_id=f"u{n}") for n in range(2)]
    report = {"code": 200, "data": {"callbackType": "first", "task_id": "u1", "data": []}}
    async with service.database.transaction() as (session, _):
        await session.execute(select(Task).where(Task.id == running.id).with_for_update())
        async with service.database.transaction() as (adding, _), asyncio.timeout(5):
            # It passes over the task that is being changed, and keeps its own locks meanwhile.
            assert await service.services.lifecycle.add_up_usage(adding, MORNING + timedelta(days=1), 50) == 1
            await session.rollback()
            await service.create_task()
            answer = await service.anonymous.post(service.callback_path(running.id), json=report)
            usage = await _usage(service)

    assert (rested.status, answer.status_code, usage["tasks"]) == (TaskStatus.generating, 200, 3)


async def test_range_includes_its_beginning_and_not_its_end(service: Service) -> None:
    for hours in range(4):
        await service.add_task(now=MORNING + timedelta(hours=hours))

    since_one = await _usage(service, since="2026-03-01T09:00:00Z")
    until_one = await _usage(service, until="2026-03-01T10:00:00+01:00")
    between = await _usage(service, since="2026-03-01T09:00:00Z", until="2026-03-01T11:00:00Z")

    assert [part["tasks"] for part in (since_one, until_one, between)] == [3, 1, 2]


async def test_ends_of_the_calendar_bound_a_range(service: Service) -> None:
    await service.add_task()

    bounds = [
        ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:30:00-12:00", "0001-01-01T00:00:00Z"),
    ]
    found = [(await _usage(service, since=since, until=until))["tasks"] for since, until in bounds]

    assert found == [1, 0]
    assert await _usage(service, since="9999-12-31T22:00:00Z") == NOTHING


@pytest.mark.parametrize("value", ["yesterday", "2026-03-01T09:00:00", "1e999", ""])
async def test_time_that_cannot_be_read_is_refused(service: Service, value: str) -> None:
    answer = await service.client.get("/v1/usage", params={"since": value})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/query/since")


async def _usage(service: Service, **parameters: str) -> dict[str, Any]:
    used: dict[str, Any] = (await service.client.get("/v1/usage", params=parameters)).raise_for_status().json()
    return used


def _range(rng: random.Random) -> tuple[datetime | None, datetime | None]:
    """Two moments of some days in order, full hours and others, or none."""
    minutes = sorted(rng.randrange(-1, 100) * 60 + rng.choice([0, rng.randrange(60)]) for _ in range(2))
    moments = [MORNING + timedelta(minutes=each) for each in minutes]
    since, until = rng.choice([(moments[0], None), (None, moments[1]), (moments[0], moments[1])])
    return since, until


async def _sum(service: Service, since: datetime | None, until: datetime | None) -> tuple[dict[Charge, int], int]:
    async with service.database.reads() as session:
        key_id = (await session.scalars(select(ApiKey.id))).one()
        tasks, posts = await sum_usage(session, [key_id], since, until)
    return {charge: count for charge, count in tasks.items() if count}, posts


async def _sum_by_day(service: Service, since: datetime | None, until: datetime | None) -> ByDay:
    async with service.database.reads() as session:
        key_id = (await session.scalars(select(ApiKey.id))).one()
        rows = await sum_by_day(session, [key_id], since, until)
    assert [row[:3] for row in rows] == sorted({row[:3] for row in rows})
    return {(day, charge): (tasks, posts) for _, day, charge, tasks, posts in rows}


async def _expected(
    service: Service,
    counted: Mapping[str, tuple[datetime, Charge, int]],
    since: datetime | None,
    until: datetime | None,
) -> ByDay:
    """The same by looking at each task. Those that are in the sums alone count by their hour."""
    async with service.database.reads() as session:
        known = {*await session.scalars(select(Task.id)), *await session.scalars(select(SpentCharge.task_id))}
    found: ByDay = {}
    for id_, (created_at, charge, posts) in counted.items():
        at = created_at if id_ in known else created_at.replace(minute=0)
        if (not since or at >= since) and (not until or at < until):
            tasks, made = found.get((at.date(), charge), (0, 0))
            found[at.date(), charge] = tasks + 1, made + posts
    return found


def _in_all(by_day: ByDay) -> tuple[dict[Charge, int], int]:
    tasks = Counter[Charge]()
    for (_, charge), (count, _) in by_day.items():
        tasks[charge] += count
    return dict(tasks), sum(posts for _, posts in by_day.values())


async def _add_up(service: Service, now: datetime) -> None:
    async with service.database.transaction() as (session, _):
        await service.services.lifecycle.add_up_usage(session, now, 100)
        await add_up_spent(session, 100)
