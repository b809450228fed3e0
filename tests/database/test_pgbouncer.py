"""Behind PgBouncer in transaction mode, where each transaction may have another connection to the server."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, text

from app.database.engine import Database
from app.database.migrations import migrate
from app.models import PeriodicJob
from tests.faults.ledger import has_ended
from tests.support.api import Json, client_of
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import Processes
from tests.support.settings import UPSTREAM_KEY
from tests.support.wait import eventually

# `make proof` runs these: a machine without PgBouncer can still run all other tests.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize(
        ("scheme", "query"), [("postgresql+psycopg", ""), ("postgresql", "?pgbouncer=true")], ids=["psycopg", "asyncpg"]
    ),
]


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
async def test_every_command_works_and_two_services_share_two_hundred_tasks(
    empty_database_url: str, scheme: str, query: str, tmp_path: Path
) -> None:
    pace = {"upstream_rate": "1000/1", "poll_after": "5", "poll_every": "1"}
    async with pgbouncer(empty_database_url, 20) as address:
        url = f"{scheme}://{address}{query}"
        with Processes(tmp_path, upstream_api_key=UPSTREAM_KEY, **pace) as processes:
            sandbox = await processes.sandbox(rate=10_000, delay=0.5, credits=100_000)
            migrated = await processes.run("migrate", database_url=url)
            services = [await processes.serve(url, sandbox.url) for _ in range(2)]
            clients = [client_of(service.url) for service in services]
            batches = [_place(clients[number % 2], 10) for number in range(20)]
            placed = [response for batch in await asyncio.gather(*batches) for response in batch]
            await eventually(lambda: has_ended(empty_database_url), within=90)
            listed = [task for page in await asyncio.gather(*(_all(client) for client in clients)) for task in page]
            reached = {"database_url": url, "upstream_url": sandbox.url, "public_url": services[0].url}
            examined = await processes.run("doctor", "--json", **reached)
            for client in clients:
                await client.aclose()
            logs = [service.log for service in services]

    assert migrated.code == 0
    assert {response.status_code for response in placed} == {202}
    assert (len(listed), {task["status"] for task in listed}) == (400, {"succeeded"})
    assert [finding for finding in json.loads(examined.stdout) if not finding["ok"]] == []
    # On a machine under load a lock may come late, which is a warning, and the work is done again. What the database
    # refuses, such as a statement that another connection has prepared, is an error.
    lines = [json.loads(line) for log in logs for line in log.splitlines()]
    assert [line for line in lines if line["level"] == "error" or "prepared" in str(line)] == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_processes_share_one_connection_to_the_server(database_url: str, scheme: str, query: str) -> None:
    async with pgbouncer(database_url, 1) as address:
        url = f"{scheme}://{address}{query}"
        await asyncio.to_thread(migrate, url)
        databases = [Database(url) for _ in range(2)]
        async with databases[0].transaction() as (session, now):
            session.add(PeriodicJob(name="counter", due_at=now, attempts=0, detail={}))

        async def count(database: Database) -> None:
            for _ in range(10):
                async with database.transaction() as (session, _):
                    job = await session.get_one(PeriodicJob, "counter", with_for_update=True)
                    job.attempts += 1
                async with database.reads() as session:
                    assert await session.scalar(select(PeriodicJob.name))

        await asyncio.gather(*(count(database) for database in databases for _ in range(2)))
        async with databases[0].reads() as session:
            counted = (await session.get_one(PeriodicJob, "counter")).attempts
            limits = [await session.scalar(text(f"SHOW {name}_timeout")) for name in ("lock", "statement")]
        for database in databases:
            await database.close()

    assert counted == 40
    assert limits == ["5s", "15s"]


async def _place(client: httpx.AsyncClient, number: int) -> list[httpx.Response]:
    return [await client.post("/v1/tasks", json={"prompt": "rain"}) for _ in range(number)]


async def _all(client: httpx.AsyncClient) -> list[Json]:
    items: list[Json] = (await client.get("/v1/tasks?limit=200")).raise_for_status().json()["items"]
    return items
