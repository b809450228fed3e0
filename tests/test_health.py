"""Liveness, readiness and metrics: when this instance can accept requests, and what its operator should do."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from app.enums import TaskStatus
from app.health import Check, State, worst
from app.models import Clip, Delivery, PeriodicJob, WebhookEndpoint
from tests.support.processes import Processes
from tests.support.service import Service, serve
from tests.support.settings import UPSTREAM_KEY

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    ("statuses", "readiness"),
    [
        (("ok", "ok"), "ok"),
        (("ok", "degraded"), "degraded"),
        (("degraded", "down", "ok"), "down"),
    ],
)
def test_readiness_is_the_worst_status_of_its_checks(statuses: tuple[State, ...], readiness: State) -> None:
    assert worst({str(number): Check(status=status, detail="") for number, status in enumerate(statuses)}) == readiness


async def test_health_routes_need_no_key(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False) as anybody:
        alive, ready, metrics = [await anybody.get(path) for path in ("/livez", "/readyz", "/metrics")]

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert ready.headers["cache-control"] == "no-store"
    assert (metrics.status_code, metrics.headers["content-type"].partition(";")[0]) == (200, "text/plain")


async def test_overdue_tasks_degrade_readiness(service: Service) -> None:
    await service.add_task(due_at=LONG_AGO)
    await service.add_task(TaskStatus.generating, due_at=LONG_AGO)
    await service.add_task(TaskStatus.generating, due_at=datetime.now(UTC) - timedelta(seconds=30))
    await service.add_task(TaskStatus.succeeded)

    answer = await service.client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["checks"]["overdue"]["detail"] == "overdue: 2 tasks; does a worker run?"


async def test_overdue_rows_of_every_table_are_counted(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=task.id, index=0, created_at=LONG_AGO, due_at=LONG_AGO, attempts=0))
        await session.execute(update(PeriodicJob).values(due_at=LONG_AGO))
    endpoint = (await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})).json()
    await service.client.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")

    async def overdue() -> str | None:
        async with service.database.writes.begin() as session:
            await session.execute(update(Delivery).values(due_at=LONG_AGO))
        detail: str | None = (await service.client.get("/readyz")).json()["checks"]["overdue"]["detail"]
        return detail

    assert await overdue() == "overdue: 1 clips, 1 deliveries, 1 periodic jobs; does a worker run?"
    async with service.database.writes.begin() as session:
        await session.execute(update(WebhookEndpoint).values(paused_until=datetime.now(UTC) + timedelta(hours=1)))
    assert await overdue() == "overdue: 1 clips, 1 periodic jobs; does a worker run?"


async def test_key_refused_by_the_credits_call_degrades_readiness(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox(key_works=False)
        async with serve(database_url, upstream_url=sandbox.url, upstream_api_key=UPSTREAM_KEY) as service:
            before = (await service.client.get("/readyz")).json()["status"]
            answer = await service.client.get("/v1/credits")
            after = (await service.client.get("/readyz")).json()

    assert (before, answer.status_code, after["status"]) == ("ok", 502, "degraded")
    assert "the upstream refuses our key" in after["checks"]["queue"]["detail"]


async def test_service_without_the_schema_is_alive_but_not_ready(empty_database_url: str) -> None:
    async with serve(empty_database_url, runs_workers=True) as service:
        ready, alive = await service.client.get("/readyz"), await service.client.get("/livez")

    assert (ready.status_code, ready.json()["status"]) == (503, "down")
    assert ready.json()["checks"]["database"]["detail"].endswith("run `soundpost migrate`")
    assert alive.status_code == 200
