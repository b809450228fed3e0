"""The database goes away for some seconds while orders come in; nobody restarts us."""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.databases import Outage, breakable_postgres, locked, silenced
from tests.faults.ledger import has_ended, read_ledger
from tests.faults.storm import order_until
from tests.support.api import client_of, create_tasks
from tests.support.processes import Processes
from tests.support.wait import eventually

AWAY = 5.0


@pytest.fixture(params=["sqlite", "postgresql"])
def breakable(request: pytest.FixtureRequest) -> Iterator[tuple[str, Outage]]:
    """The URL of a database, and a way to take it away for a while."""
    if request.param == "postgresql":
        with breakable_postgres() as found:
            yield found
    else:
        folder: Path = request.getfixturevalue("tmp_path")
        file = folder / "soundpost.db"
        file.write_bytes(request.getfixturevalue("migrated_sqlite").read_bytes())
        url = f"sqlite+aiosqlite:///{file}"
        yield url, partial(locked, url)


async def test_database_may_go_away_under_load(breakable: tuple[str, Outage], tmp_path: Path) -> None:
    database_url, outage = breakable
    rng = random.Random(1)  # noqa: S311 - paces the orders
    with Processes(tmp_path, upstream_rate="60/1", poll_after="2", poll_every="1", upstream_timeout="5") as processes:
        sandbox = await processes.sandbox("--callback-retries", "0.5,1,1,2,2,2", delay=0.5, rate=1000)
        service = await processes.serve(database_url, sandbox.url)
        until = time.monotonic() + AWAY + 4
        orders = [asyncio.create_task(order_until(service.url, until, 0.4, rng)) for _ in range(10)]
        await asyncio.sleep(2)
        with outage():
            lives = await _lives_for(AWAY, service.url)
        acknowledged = [task_id for created in await asyncio.gather(*orders) for task_id in created]
        await eventually(lambda: has_ended(database_url), within=60)
        ledger = await read_ledger(database_url, sandbox.url)
        async with client_of(service.url) as client:
            readiness = (await client.get("/readyz")).json()["status"]

    assert all(lives)
    assert ledger.disagreements() == []
    assert sorted(acknowledged) == sorted(ledger.tasks)
    assert readiness == "ok"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connections_that_fall_silent_are_replaced(database_url: str, tmp_path: Path) -> None:
    # The address of a socket has room for a hundred characters.
    with tempfile.TemporaryDirectory() as folder, Processes(tmp_path, upstream_rate="60/1") as processes:
        async with silenced(database_url, Path(folder)) as (url, fall_silent):
            sandbox = await processes.sandbox(rate=1000)
            service = await processes.serve(url, sandbox.url)
            async with client_of(service.url) as client:
                await create_tasks(client, 10)
                await eventually(lambda: has_ended(database_url), within=60)

                fall_silent()
                began = time.monotonic()
                while not (await client.post("/v1/tasks", json={"prompt": "rain"})).is_success:
                    assert time.monotonic() < began + 30
                await eventually(lambda: has_ended(database_url), within=30)


async def _lives_for(seconds: float, url: str) -> list[bool]:
    """Ask again and again whether the process lives."""
    until, lives = time.monotonic() + seconds, []
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=2) as client:
        while time.monotonic() < until:
            lives.append((await client.get("/livez")).is_success)
            await asyncio.sleep(0.2)
    return lives
