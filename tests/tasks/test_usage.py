"""What a key's tasks cost: each counted once, under the charge that it has now."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.enums import Charge, TaskStatus
from app.models import DailyCharge, SpentCharge, Task
from app.retention import Retention
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task
from tests.support.service import Service

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


async def test_cost_outlives_the_retention_as_sums_by_day(service: Service) -> None:
    erased = await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=1)
    await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=2)
    await service.add_task(TaskStatus.failed, now=MORNING + timedelta(days=1), charge=Charge.refunded, posts=1)
    await service.client.delete(f"/v1/tasks/{erased.id}")
    before = await _usage(service)
    for days in (91, 92):
        async with service.database.writes.begin() as session:
            await Retention(days=90).erase_batch(session, MORNING + timedelta(days=days))

    async with service.database.reads() as session:
        sums = (await session.execute(select(DailyCharge.day, DailyCharge.tasks).order_by(DailyCharge.day))).all()
        left = [await session.scalar(select(func.count()).select_from(kind)) for kind in (Task, SpentCharge)]
    assert await _usage(service) == before == {"tasks": 3, "posts": 4, "charged": 2, "refunded": 1, "possible": 0}
    assert [(day.isoformat(), tasks) for day, tasks in sums] == [
        ("2026-03-01T00:00:00+00:00", 2),
        ("2026-03-02T00:00:00+00:00", 1),
    ]
    assert left == [0, 0]
    assert (await _usage(service, since="2026-03-02T00:00:00Z"))["tasks"] == 1
    assert (await _usage(service, until="2026-03-02T00:00:00Z"))["tasks"] == 2


async def test_range_includes_its_beginning_and_not_its_end(service: Service) -> None:
    for hours in range(4):
        await service.add_task(now=MORNING + timedelta(hours=hours))

    since_one = await _usage(service, since="2026-03-01T09:00:00Z")
    until_one = await _usage(service, until="2026-03-01T10:00:00+01:00")
    between = await _usage(service, since="2026-03-01T09:00:00Z", until="2026-03-01T11:00:00Z")

    assert [part["tasks"] for part in (since_one, until_one, between)] == [3, 1, 2]


@pytest.mark.parametrize("value", ["yesterday", "2026-03-01T09:00:00", "1e999", ""])
async def test_time_that_cannot_be_read_is_refused(service: Service, value: str) -> None:
    answer = await service.client.get("/v1/usage", params={"since": value})

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/query/since")


async def _usage(service: Service, **parameters: str) -> dict[str, Any]:
    used: dict[str, Any] = (await service.client.get("/v1/usage", params=parameters)).raise_for_status().json()
    return used
