"""Whether the service lives and can work, told to those who run it."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from app.health import Check, State, worst
from app.words import TaskStatus
from tests.inside import Service, inside

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (("ok", "ok"), "ok"),
        (("ok", "degraded"), "degraded"),
        (("degraded", "down", "ok"), "down"),
    ],
)
def test_whole_is_as_well_as_its_worst_part(states: tuple[State, ...], whole: State) -> None:
    assert worst({str(number): Check(status=state) for number, state in enumerate(states)}) == whole


async def test_service_is_ready_and_asks_for_no_key(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False) as anybody:
        alive, ready, metrics = [await anybody.get(path) for path in ("/livez", "/readyz", "/metrics")]

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert ready.headers["cache-control"] == "no-store"
    assert (metrics.status_code, metrics.headers["content-type"].partition(";")[0]) == (200, "text/plain")


async def test_overdue_tasks_degrade_readiness(service: Service) -> None:
    await service.task(due_at=LONG_AGO)
    await service.task(TaskStatus.generating, due_at=LONG_AGO)
    await service.task(TaskStatus.generating, due_at=datetime.now(UTC) - timedelta(seconds=30))
    await service.task(TaskStatus.succeeded)

    answer = await service.client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["checks"]["queue"]["detail"] == "2 tasks are overdue: does a worker run?"


async def test_database_without_the_schema_makes_it_unready_but_alive(empty_database_url: str) -> None:
    async with inside(empty_database_url, runs_loops=True) as service:
        ready, alive = await service.client.get("/readyz"), await service.client.get("/livez")

    assert (ready.status_code, ready.json()["status"]) == (503, "down")
    assert ready.json()["checks"]["database"]["detail"].endswith("run `soundpost migrate`")
    assert alive.status_code == 200
