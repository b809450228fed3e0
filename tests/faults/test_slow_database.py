"""What waits for the database takes its turn: callbacks first, new tasks last, and a locked task alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from statistics import quantiles
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import event, make_url
from sqlalchemy.util import await_only

from app.enums import TaskStatus
from app.models import Task
from tests.support.rows import add_key, add_task
from tests.support.service import Service, client_with_key, serve
from tests.support.wait import eventually

ORDER = {"prompt": "rain"}
SLOW = 0.5
SUBMITTERS = CALLBACKS = 40
ROWS_OF_A_KEY = {
    "endpoints": "SELECT id FROM webhook_endpoints WHERE id <> %s FOR UPDATE",
    "clips": "SELECT id FROM clips WHERE id <> %s FOR UPDATE",
}
CALLBACK: dict[str, Any] = {"code": 200, "data": {"callbackType": "text", "data": []}}


@contextmanager
def slow_commits(service: Service) -> Iterator[None]:
    """Every commit of the service takes SLOW seconds, as on a disk that others use up."""
    is_slow = True

    def wait(_: object) -> None:
        if is_slow:
            await_only(asyncio.sleep(SLOW))

    engines = [
        sessions.kw["bind"].sync_engine for sessions in (service.database.writes, service.database.urgent_writes)
    ]
    for engine in engines:
        event.listen(engine, "commit", wait)
    yield
    is_slow = False


@asynccontextmanager
async def submitting(client: httpx.AsyncClient) -> AsyncIterator[list[httpx.Response]]:
    """Create tasks without a pause from many callers; yields the responses."""
    responses: list[httpx.Response] = []

    async def submit() -> None:
        while True:
            responses.append(await client.post("/v1/tasks", json={"prompt": "rain"}))

    async with asyncio.timeout(60):
        callers = [asyncio.create_task(submit()) for _ in range(SUBMITTERS)]
        try:
            yield responses
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)


async def timed(call: Any) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    response = await call
    return time.monotonic() - began, response


@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_callbacks_come_first_while_commits_are_slow(database_url: str, pause: float, measured: Any) -> None:
    async with serve(database_url, runs_workers=True, grace=1) as service:
        tasks = [
            await service.add_task(TaskStatus.generating, upstream_task_id=f"u{number}") for number in range(CALLBACKS)
        ]
        with slow_commits(service):
            async with submitting(service.client) as placed:
                await asyncio.sleep(2)
                calls = []
                for task in tasks:
                    path = service.callback_path(task.id)
                    body = {**CALLBACK, "data": {**CALLBACK["data"], "task_id": task.upstream_task_id}}
                    calls.append(asyncio.create_task(timed(service.anonymous.post(path, json=body))))
                    await asyncio.sleep(pause)
                results = await asyncio.gather(*calls)
                await eventually(lambda: any(response.status_code == 202 for response in placed), within=30)

    took = [seconds for seconds, _ in results]
    measured(f"callbacks while commits take {SLOW} s: p50 {quantiles(took)[1]:.2f} s, most {max(took):.2f} s")
    assert {response.status_code for _, response in results} == {200}
    assert max(took) <= 5
    assert {response.status_code for response in placed} <= {202, 503}
    assert all("retry-after" in response.headers for response in placed if response.status_code == 503)


async def test_sixty_tasks_at_once_are_all_stored(service: Service) -> None:
    placed = await asyncio.gather(*(service.client.post("/v1/tasks", json={"prompt": "rain"}) for _ in range(60)))

    assert {response.status_code for response in placed} == {202}


@contextmanager
def locked(database_url: str, statement: str, *values: str) -> Iterator[None]:
    """Hold a lock, as a process does whose machine vanished in a transaction."""
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        assert other.execute(statement.encode(), values).fetchone()
        yield
        other.rollback()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_lock_on_one_task_delays_nobody_else(service: Service, database_url: str) -> None:
    task, other = [await service.add_task(TaskStatus.generating, upstream_task_id=name) for name in ("u1", "u2")]

    def call_back(task_id: str) -> Any:
        return timed(service.anonymous.post(service.callback_path(task_id), json=CALLBACK))

    with locked(database_url, "SELECT id FROM tasks WHERE id = %s FOR UPDATE", task.id):
        stuck = [asyncio.create_task(call_back(task.id)) for _ in range(25)]
        stuck += [asyncio.create_task(timed(service.client.post(f"/v1/tasks/{task.id}/cancel"))) for _ in range(25)]
        await asyncio.sleep(0.5)
        free = [
            await timed(service.client.get(f"/v1/tasks/{task.id}")),
            await timed(service.client.post("/v1/tasks", json={"prompt": "rain"})),
            await call_back(other.id),
            await timed(service.client.post(f"/v1/tasks/{other.id}/cancel")),
        ]
        waited = await asyncio.gather(*stuck)
    after = await call_back(task.id)

    assert [response.status_code for _, response in free] == [200, 202, 200, 200]
    assert max(seconds for seconds, _ in free) < 3
    assert {response.status_code for _, response in waited} == {503}
    assert {response.headers["retry-after"] for _, response in waited} == {"2"}
    assert max(seconds for seconds, _ in waited) < 12
    assert after[1].status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_lock_on_one_idempotency_key_delays_no_other_task(service: Service, database_url: str) -> None:
    order: dict[str, Any] = {"json": {"prompt": "rain"}, "headers": {"Idempotency-Key": "one"}}
    (await service.client.post("/v1/tasks", **order)).raise_for_status()

    with locked(database_url, "SELECT key FROM idempotency_keys WHERE key = %s FOR UPDATE", "one"):
        stuck = [asyncio.create_task(timed(service.client.post("/v1/tasks", **order))) for _ in range(25)]
        await asyncio.sleep(0.5)
        seconds, placed = await timed(service.client.post("/v1/tasks", json={"prompt": "rain"}))
        waited = await asyncio.gather(*stuck)

    assert (placed.status_code, seconds < 3) == (202, True)
    assert {response.status_code for _, response in waited} == {503}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("table", ROWS_OF_A_KEY)
async def test_lock_on_what_belongs_to_some_tasks_delays_no_callback_of_others(database_url: str, table: str) -> None:
    async with serve(database_url, database_lock_timeout=2) as service:
        other_key = await add_key(service.database, "other")
        endpoint = (await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})).json()
        other = await add_task(service.database, other_key, TaskStatus.generating, upstream_task_id="u-other")
        tasks = [await service.add_task(TaskStatus.generating, upstream_task_id=f"u{number}") for number in range(25)]

        def call_back(task: Task, kind: str) -> Any:
            clip = {"id": task.upstream_task_id, "audio_url": "http://127.0.0.1:9/a.mp3", "title": kind}
            data = {"callbackType": kind, "task_id": task.upstream_task_id, "data": [clip]}
            return timed(service.anonymous.post(service.callback_path(task.id), json={"code": 200, "data": data}))

        await asyncio.gather(*(call_back(task, "first") for task in tasks))
        with locked(database_url, ROWS_OF_A_KEY[table], "none"):
            stuck = [asyncio.create_task(call_back(task, "complete")) for task in tasks]
            path = f"/v1/webhook-endpoints/{endpoint['id']}"
            if table == "endpoints":
                stuck += [
                    asyncio.create_task(timed(service.client.patch(path, json={"description": ""}))) for _ in range(25)
                ]
            await asyncio.sleep(0.5)
            free = [await call_back(other, "complete"), await timed(service.client.get(path))]
            waited = await asyncio.gather(*stuck)

        assert [response.status_code for _, response in free] == [200, 200]
        assert max(seconds for seconds, _ in free) < 4
        assert {response.status_code for _, response in waited} == {503}
        assert (await call_back(tasks[0], "complete"))[1].status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_lock_on_one_caller_delays_no_order_of_another(database_url: str) -> None:
    async with (
        serve(database_url, database_lock_timeout=2) as service,
        await client_with_key(service, "other") as other,
    ):
        with locked(database_url, "SELECT id FROM api_keys WHERE name = %s FOR UPDATE", "tests"):
            stuck = [asyncio.create_task(timed(service.client.post("/v1/tasks", json=ORDER))) for _ in range(25)]
            await asyncio.sleep(0.5)
            free = [await timed(other.post("/v1/tasks", json=ORDER)) for _ in range(5)]
            waited = await asyncio.gather(*stuck)
        after = await service.client.post("/v1/tasks", json=ORDER)

    assert {response.status_code for _, response in free} == {202}
    assert max(seconds for seconds, _ in free) < 2
    assert {response.status_code for _, response in waited} == {503}
    assert after.status_code == 202


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_transaction_of_a_vanished_process_ends_by_itself(service: Service, database_url: str) -> None:
    task = await service.add_task(TaskStatus.generating, upstream_task_id="u1")
    async with service.database.writes() as vanished:
        await vanished.get_one(type(task), task.id, with_for_update=True)
        began = time.monotonic()
        while (await service.anonymous.post(service.callback_path(task.id), json=CALLBACK)).status_code != 200:
            assert time.monotonic() < began + 20
        await vanished.invalidate()


async def test_callback_that_cannot_be_stored_fails_alone(service: Service) -> None:
    tasks = [await service.add_task(TaskStatus.generating, upstream_task_id=f"u{number}") for number in range(6)]
    broken = tasks[3].id

    def refuse(_connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _is_many: bool) -> None:
        if sql.startswith("INSERT INTO callbacks") and broken in str(parameters):
            raise ArithmeticError

    engine = service.database.urgent_writes.kw["bind"].sync_engine
    event.listen(engine, "before_cursor_execute", refuse)
    with slow_commits(service):
        paths = [service.callback_path(task.id) for task in tasks]
        answers = await asyncio.gather(*(service.anonymous.post(path, json=CALLBACK) for path in paths))

    assert [answer.status_code for answer in answers] == [200, 200, 200, 500, 200, 200]
