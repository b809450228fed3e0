"""One URL with libpq's parameters works for both drivers, the pool, LISTEN, migrations and every command."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from app.config.database_url import DatabaseLimits, read_postgres_url
from app.database.engine import Database
from app.database.failures import advice
from app.database.migrations import migrate
from app.database.pg_notify import PostgresNotifier
from app.database.wakeups import Wakeups
from tests.support.api import client_of
from tests.support.processes import Processes
from tests.support.service import serve
from tests.support.settings import UPSTREAM_KEY
from tests.support.tls_postgres import Way, tls_way
from tests.support.wait import eventually

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

SCHEMES = ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"]
# With CA for the file of the authority, SOCKETS for the folder of the server's socket, PORT for its port by TCP.
PARAMETERS = [
    "sslmode=require",
    "sslmode=verify-full&sslrootcert=CA",
    "ssl=true",
    "ssl=verify-full&sslrootcert=CA",
    "sslmode=disable",
    "channel_binding=prefer",
    "connect_timeout=7",
    "connect_timeout=0",
    "connect_timeout=-1",
    "application_name=of%20the%20url",
    "options=-csearch_path=public",
    "options=-c%20search_path%3Dpublic%20-c%20work_mem%3D8MB",
    "target_session_attrs=read-write",
    "target_session_attrs=any&keepalives_idle=5&gssencmode=disable",
    "host=SOCKETS&port=5432",
    "host=SOCKETS&sslmode=require&port=5432",
    "host=localhost,localhost&port=1,PORT",
    "host=localhost:1&host=localhost:PORT",
    "pgbouncer=true",
    "prepared_statement_cache_size=0",
    "connection_limit=5&a_word_of_nobody=1",
]


@pytest.fixture
async def way(database_url: str, tmp_path: Path) -> AsyncIterator[Way]:
    async with tls_way(database_url, tmp_path) as way:
        yield way


def by_tcp(database_url: str, way: Way, scheme: str, query: str) -> str:
    """The URL of this database by TCP, with these parameters."""
    url = make_url(database_url)
    words = {"CA": str(way.authority), "SOCKETS": str(url.query["host"]), "PORT": str(way.port)}
    for word, value in words.items():
        query = query.replace(word, value)
    return f"{scheme}://{url.username}@localhost:{way.port}/{url.database}?{query}"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+psycopg"])
@pytest.mark.parametrize("query", PARAMETERS)
async def test_parameter_works_for_the_pool_for_listen_and_for_migrations(
    database_url: str, way: Way, scheme: str, query: str
) -> None:
    url = by_tcp(database_url, way, scheme, query)
    await asyncio.to_thread(migrate, url)
    database, elsewhere = Database(url), Database(database_url)
    wakeups = Wakeups(database)
    notifier = PostgresNotifier(wakeups, database)
    notifier.start()

    async def is_heard() -> bool:
        async with elsewhere.writes.begin() as session:
            await session.execute(text("SELECT pg_notify('soundpost', 'elsewhere:hello')"))
        return wakeups.event("hello").is_set()

    assert await database.is_migrated()
    if not read_postgres_url(url).has_pooler:
        await eventually(is_heard)
    await notifier.close()
    await database.close()
    await elsewhere.close()
    assert set(way.encrypted) <= {"disable" not in query.partition("gssencmode")[0]}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_command_takes_the_same_url(database_url: str, way: Way, scheme: str, tmp_path: Path) -> None:
    query = (
        "sslmode=verify-full&sslrootcert=CA&channel_binding=prefer&connect_timeout=7&application_name=sounds"
        "&options=-csearch_path=public&target_session_attrs=read-write&a_word_of_nobody=1"
    )
    url = by_tcp(database_url, way, scheme, query)
    with Processes(tmp_path, upstream_api_key=UPSTREAM_KEY) as processes:
        sandbox = await processes.sandbox()
        migrated = await processes.run("migrate", database_url=url)
        created = await processes.run("keys", "create", "caller", database_url=url)
        service = await processes.serve(url, sandbox.url)
        processes.worker(url, sandbox.url)
        reached = {"database_url": url, "upstream_url": sandbox.url, "public_url": service.url}
        examined = await processes.run("doctor", "--json", **reached)
        async with client_of(service.url, created.stdout.strip()) as client:
            placed = await client.post("/v1/tasks", json={"prompt": "rain"}, headers={"Prefer": "wait=20"})

    assert (migrated.code, created.code, placed.status_code) == (0, 0, 200)
    assert len(created.stdout.split()) == 1
    assert "have no effect: " in migrated.stderr
    assert "a_word_of_nobody" in migrated.stderr
    findings = {finding["check"]: finding for finding in json.loads(examined.stdout)}
    assert "a_word_of_nobody" in findings["settings"]["detail"]
    assert examined.code == 0
    assert set(way.encrypted) == {True}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=verify-full&sslrootcert=/nowhere", "/nowhere"),
        ("sslmode=verify-full&sslrootcert=CA&host=127.0.0.1", "127.0.0.1|certificate"),
        ("ssl_min_protocol_version=TLSv9", "TLSv9|protocol"),
        ("target_session_attrs=standby&connect_timeout=2", "."),
    ],
)
async def test_connection_that_cannot_be_opened_is_an_error_of_the_database(
    database_url: str, way: Way, driver: str, query: str, expected: str
) -> None:
    url = by_tcp(database_url, way, f"postgresql+{driver}", query)
    database = Database(url)
    with pytest.raises((DBAPIError, OSError), match=expected):
        await database.is_migrated()
    await database.close()


async def test_command_that_cannot_open_the_database_says_why(database_url: str, way: Way, tmp_path: Path) -> None:
    for scheme in ("postgresql", "postgresql+psycopg"):
        url = by_tcp(database_url, way, scheme, "sslmode=verify-full&sslrootcert=/nowhere/ca.pem")
        url = url.replace("@localhost", ":the-secret-word@localhost")
        with Processes(tmp_path, database_url=url, upstream_api_key=UPSTREAM_KEY) as processes:
            ended = [await processes.run(*command) for command in (["migrate"], ["keys", "list"], ["doctor"])]

        assert [each.code for each in ended] == [1, 1, 1]
        for each in ended:
            said = each.stdout + each.stderr
            assert "SOUNDPOST_DATABASE_URL" in said
            assert "Traceback" not in said
            assert "the-secret-word" not in said


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+psycopg"])
async def test_server_may_be_named_by_its_address_alone_and_text_is_utf_8(
    database_url: str, way: Way, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    server = make_url(database_url)
    user = f"user={server.username}&client_encoding=LATIN1"
    url = f"{scheme}:///{server.database}?hostaddr=127.0.0.1&port={way.port}&sslmode=require&{user}"

    await asyncio.to_thread(migrate, url)

    assert await _shown(url, "client_encoding") == {"client_encoding": "UTF8"}
    assert set(way.encrypted) == {True}


async def test_parameters_of_the_environment_mean_the_same_to_both_drivers(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=sounds -cidle_in_transaction_session_timeout=77s")
    monkeypatch.setenv("PGAPPNAME", "of the environment")
    for driver in ("asyncpg", "psycopg"):
        shown = await _shown(_with_driver(database_url, driver), "search_path", "application_name")

        assert shown == {"search_path": "sounds", "application_name": "of the environment"}


@pytest.mark.parametrize("parameter", ["", "pgbouncer=true"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_server_ends_by_itself_what_a_vanished_process_left(
    database_url: str, way: Way, driver: str, parameter: str
) -> None:
    url = by_tcp(database_url, way, f"postgresql+{driver}", parameter)
    shown = await _shown(
        url, "idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout", "application_name"
    )

    assert shown == {
        "idle_in_transaction_session_timeout": "10s",
        "lock_timeout": "5s",
        "statement_timeout": "15s",
        "application_name": "soundpost",
    }


async def test_process_opens_no_more_connections_than_its_settings_say(database_url: str) -> None:
    limits = {"database_pool_size": 2, "database_max_overflow": 1, "database_lock_timeout": 1}
    async with serve(database_url, runs_workers=True, grace=1, **limits) as service:
        task = await service.add_task()
        calls = [service.client.post("/v1/tasks", json={"prompt": "rain"}) for _ in range(30)]
        calls += [service.client.get(f"/v1/tasks/{task.id}") for _ in range(30)]
        calls += [service.anonymous.post(service.callback_path(task.id), json={}) for _ in range(30)]
        answered = await asyncio.gather(*calls)
        async with service.database.reads() as session:
            asked = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            connections = await session.scalar(asked)
            lock_timeout = await session.scalar(text("SHOW lock_timeout"))

    assert {answer.status_code for answer in answered} == {200, 202}
    assert (connections or 0) <= 2 + 1 + 3
    assert lock_timeout == "1s"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_options_of_the_url_win_over_our_limits(database_url: str, driver: str) -> None:
    url = f"{_with_driver(database_url, driver)}&options=-clock_timeout=1234ms"

    assert await _shown(url, "lock_timeout", "statement_timeout") == {
        "lock_timeout": "1234ms",
        "statement_timeout": "15s",
    }


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_wait_for_a_lock_ends_and_returns_its_connection(database_url: str, driver: str) -> None:
    limits = DatabaseLimits(pool_size=1, max_overflow=0, lock_timeout=timedelta(milliseconds=200))
    database = Database(_with_driver(database_url, driver), limits=limits)
    sync_url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(sync_url) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        with pytest.raises((OperationalError, DBAPIError), match="lock timeout"):
            async with database.reads() as session:
                await session.execute(text("SELECT count(*) FROM tasks"))

        async with database.reads() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        other.rollback()
    await database.close()


async def _shown(url: str, *names: str) -> dict[str, str]:
    database = Database(url)
    async with database.reads() as session:
        shown = {name: str(await session.scalar(text(f"SHOW {name}"))) for name in names}
    await database.close()
    return shown


def _with_driver(url: str, driver: str) -> str:
    return make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_log_says_why_a_connection_is_refused_with_either_driver(database_url: str, driver: str) -> None:
    url = make_url(database_url).set(drivername=driver, username="nobody-of-this-name")
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(DBAPIError) as refused:
        async with database.reads() as session:
            await session.execute(text("SELECT 1"))
    await database.close()

    assert 'role "nobody-of-this-name" does not exist' in str(advice(refused.value))
