"""Liveness, readiness and metrics: when this instance can accept requests, and what its operator should do."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import ColumnElement, func, select, update

from app.enums import TaskStatus
from app.health.addresses import check_public_url
from app.health.results import Check, State, worst
from app.health.routes import ReadinessProbe
from app.health.work import NO_WORKER
from app.keyring import Keyring
from app.models import Clip, Delivery, PaceSlot, PeriodicJob, WebhookEndpoint
from app.upstream.pacing import PAUSE_SLOT
from tests.support.processes import Processes
from tests.support.sandbox import serve_sandbox
from tests.support.service import Service, serve
from tests.support.settings import SECRET_KEY, UNREACHABLE, UPSTREAM_KEY, settings_of
from tests.support.statements import recorded
from tests.support.wait import eventually


@pytest.fixture(autouse=True)
def _no_result_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadinessProbe, "fresh_for", timedelta())


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
    assert answer.json()["checks"]["overdue"]["detail"] == f"overdue: 2 tasks; {NO_WORKER}"


async def test_tasks_that_wait_for_the_pace_are_not_overdue(service: Service) -> None:
    for status in (TaskStatus.queued, TaskStatus.generating):
        await service.add_task(status, due_at=LONG_AGO, upstream_task_id="up-1")

    async def overdue(*used: ColumnElement[bool]) -> str:
        recently = datetime.now(UTC) - timedelta(seconds=5)
        async with service.database.writes.begin() as session:
            await session.execute(update(PaceSlot).values(free_at=LONG_AGO))
            await session.execute(update(PaceSlot).where(*used).values(free_at=recently))
        return str((await service.client.get("/readyz")).json()["checks"]["overdue"]["detail"])

    assert await overdue(PaceSlot.slot > 100) == f"overdue: 2 tasks; {NO_WORKER}"
    # Polls may use the first quarter of the ring alone.
    assert await overdue(PaceSlot.slot.between(0, 4)) == f"overdue: 1 tasks; {NO_WORKER}"
    assert await overdue(PaceSlot.slot >= 0) == "nothing is overdue"
    assert await overdue(PaceSlot.slot == PAUSE_SLOT) == "nothing is overdue"


async def test_last_success_and_failure_of_submits_are_told(database_url: str, tmp_path: Path) -> None:
    async with serve_sandbox() as upstream_url:
        async with serve(database_url, upstream_url=UNREACHABLE, runs_workers=True) as service:
            nothing = (await service.client.get("/readyz")).json()["checks"]["submits"]
            task_id = await service.create_task()
            await eventually(
                lambda: _submits_say(service, "degraded", "last failure (nothing was sent (ConnectError)) at")
            )
            down = (await service.client.get("/readyz")).json()["checks"]["submits"]
        async with serve(database_url, upstream_url=upstream_url, runs_workers=True) as service:
            await service.until(task_id, lambda task: task["status"] != "queued")
            await eventually(lambda: _submits_say(service, "ok", "last success at"))

    key = service.services.settings.upstream_fingerprint
    assert nothing == {"status": "ok", "detail": f"key {key} at 127.0.0.1:9: nothing was submitted yet"}
    assert down["detail"].startswith(f"key {key} at 127.0.0.1:9: last failure")


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

    assert await overdue() == f"overdue: 1 clips, 1 deliveries, 2 periodic jobs; {NO_WORKER}"
    async with service.database.writes.begin() as session:
        await session.execute(update(WebhookEndpoint).values(paused_until=datetime.now(UTC) + timedelta(hours=1)))
    assert await overdue() == f"overdue: 1 clips, 2 periodic jobs; {NO_WORKER}"


async def test_what_waits_for_a_slow_host_is_not_overdue(service: Service) -> None:
    task, soon = await service.add_task(TaskStatus.succeeded), datetime.now(UTC) + timedelta(seconds=20)
    endpoint = (await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})).json()
    for _ in range(2):
        await service.client.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")
    async with service.database.writes.begin() as session:
        for index in range(2):
            at = {"created_at": LONG_AGO, "due_at": LONG_AGO, "lane": "cdn.example:443"}
            session.add(Clip(task_id=task.id, index=index, attempts=0, **at))
        await session.execute(update(Delivery).values(due_at=LONG_AGO))

    async def overdue() -> str:
        return str((await service.client.get("/readyz")).json()["checks"]["overdue"]["detail"])

    before = await overdue()
    async with service.database.writes.begin() as session:
        first = select(func.min(Delivery.id)).scalar_subquery()
        claimed = {"fence": "f", "due_at": soon}
        await session.execute(update(Delivery).where(Delivery.id == first).values(is_ready=False, **claimed))
        await session.execute(update(Clip).where(Clip.index == 0).values(claimed))

    assert before == f"overdue: 2 clips, 2 deliveries; {NO_WORKER}"
    assert await overdue() == "nothing is overdue"


async def _submits_say(service: Service, status: str, words: str) -> bool:
    # On a busy machine one of the checks before it may not end in time; then it is not made.
    check = (await service.client.get("/readyz")).json()["checks"].get("submits")
    return bool(check and check["status"] == status and words in check["detail"])


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
    assert ready.json()["checks"]["database"]["status"] == "ok"
    assert ready.json()["checks"]["migrations"]["detail"].endswith("run `soundpost migrate`")
    assert alive.status_code == 200


async def test_many_looks_at_once_are_one_and_its_result_is_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadinessProbe, "fresh_for", timedelta(minutes=1))
    first = await asyncio.gather(*(service.client.get("/readyz") for _ in range(10)))
    await service.add_task(due_at=LONG_AGO)
    kept = await service.client.get("/readyz")
    monkeypatch.setattr(ReadinessProbe, "fresh_for", timedelta())
    probe = ReadinessProbe(service.services)

    assert {answer.json()["status"] for answer in [*first, kept]} == {"ok"}
    assert (await probe.read()).status == "degraded"


async def test_many_looks_at_once_send_the_statements_of_one(service: Service) -> None:
    probe = ReadinessProbe(service.services)
    await probe.read()
    with recorded(service.database) as once:
        await probe.read()
    with recorded(service.database) as many:
        await asyncio.gather(*(probe.read() for _ in range(10)))

    assert len(many) == len(once) > 0


@pytest.mark.parametrize(
    "public_url",
    [
        "http://127.0.0.1:8000",
        "http://localhost:8000",
        "http://serve:8000",
        "http://10.1.2.3",
        "http://[::1]:8000",
        "https://sounds.internal",
        "http://serve.default.svc:8000",
        "https://sounds.lan.",
    ],
)
async def test_public_url_that_the_real_upstream_cannot_reach_is_a_problem(public_url: str) -> None:
    settings = settings_of(
        "sqlite+aiosqlite:///unused.db", public_url=public_url, upstream_url="https://api.example.com"
    )

    found = await check_public_url(settings, Keyring(SECRET_KEY))

    assert found.status == "degraded"
    assert f"is {public_url}, which the upstream cannot reach" in found.detail


async def test_bare_address_says_what_this_is(service: Service) -> None:
    start = (await service.anonymous.get("/")).raise_for_status().json()

    assert start["service"] == "Soundpost"
    for name in ("docs", "openapi", "ready"):
        assert (await service.anonymous.get(f"/{start[name]}")).is_success
