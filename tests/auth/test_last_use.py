"""When a key was last used: to the minute, beside the requests, and at no cost to anybody who waits."""

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from app.auth.last_use import LastUses
from app.database.engine import Database
from app.models import ApiKey
from tests.console.visiting import browser_of
from tests.support.clock import MORNING, Clock
from tests.support.rows import add_key
from tests.support.service import Service, client_with_key, serve, services_of
from tests.support.statements import recorded
from tests.support.wait import eventually


async def test_every_entrance_notes_which_key_was_used(service: Service) -> None:
    last_uses = service.services.last_uses
    last_uses.write_after = timedelta(milliseconds=50)
    task_id = await service.create_task()
    paths = {
        "rest": "/v1/usage",
        "fast path": f"/v1/tasks/{task_id}",
        "list": "/v1/tasks",
        "drop-in": "/api/v1/generate/record-info",
    }
    for name, path in paths.items():
        async with await client_with_key(service, name, is_admin=True) as client:
            await client.get(path)
    async with browser_of(service) as browser:
        await browser.get("/console/tasks")
    await add_key(service.database, "unused")

    await eventually(partial(_are_noted, service.database, {*paths, "tests"}))
    assert (await _last_uses(service.database))["unused"] is None


async def test_uses_are_written_once_a_minute_over_all_replicas(database_url: str) -> None:
    clock = Clock()
    async with services_of(database_url, clock) as services:
        key = await add_key(services.database, "shop")
        found, written = [], []
        for seconds in (0, 59, 1):
            clock.advance(seconds=seconds)
            for replica in (LastUses(services.database), LastUses(services.database)):
                for _ in range(3):
                    replica.note(key)
                with recorded(services.database) as statements:
                    await replica.write()
                written.append(sum("UPDATE" in each.sql for each in statements))
            found.append((await _last_uses(services.database))["shop"])

    assert written == [1] * 6
    assert found == [MORNING, MORNING, MORNING + timedelta(minutes=1)]


async def test_nothing_is_written_while_no_key_is_used(database_url: str) -> None:
    async with services_of(database_url) as services:
        with recorded(services.database) as statements:
            await services.last_uses.write()

    assert statements == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_row_that_an_order_has_locked_is_not_waited_for(database_url: str) -> None:
    async with services_of(database_url) as services:
        keys = [await add_key(services.database, name) for name in ("locked", "free")]
        for key in keys:
            services.last_uses.note(key)
        async with services.database.transaction() as (session, _):
            await session.get(ApiKey, keys[0], with_for_update={"key_share": True})
            await services.last_uses.write()
        found = await _last_uses(services.database)

    assert [found["locked"] is None, found["free"] is None] == [True, False]


async def test_database_that_is_away_costs_nothing_but_the_use() -> None:
    database = Database("postgresql+asyncpg://user@127.0.0.1:9/none")
    last_uses = LastUses(database)
    last_uses.note("0" * 32)

    with capture_logs() as lines:
        for _ in range(2):
            await last_uses.write()

    assert [(line["event"], line["keys"]) for line in lines] == [("last_uses_not_written", 1)]
    await database.close()


async def test_what_is_noted_is_written_when_the_process_stops(database_url: str) -> None:
    async with serve(database_url) as service:
        (await service.client.get("/v1/usage")).raise_for_status()

    database = Database(database_url)
    found = await _last_uses(database)
    await database.close()
    assert found["tests"] is not None


async def test_key_that_does_not_work_was_not_used(service: Service) -> None:
    async with service.database.transaction() as (session, now):
        key = (await session.scalars(select(ApiKey))).one()
        key.revoked_at = now

    assert (await service.client.get("/v1/tasks")).status_code == 401
    await service.services.last_uses.write()

    assert await _last_uses(service.database) == {"tests": None}


async def _are_noted(database: Database, names: set[str]) -> bool:
    return {name for name, at in (await _last_uses(database)).items() if at is not None} == names


async def _last_uses(database: Database) -> dict[str, object]:
    async with database.reads() as session:
        rows = await session.execute(select(ApiKey.name, ApiKey.last_used_at))
        return {row.name: row.last_used_at for row in rows}
