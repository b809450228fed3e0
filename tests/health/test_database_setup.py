"""Doctor finds a database that answers, and that is not set up as the service needs it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.config.database_url import DatabaseLimits
from app.database.connections import ServerFacts, SessionLimits, wanted_limits
from app.database.failures import reason
from app.health.checks import Limits, all_checks, run_checks
from app.health.database import advice_on
from app.health.database_setup import (
    NETWORK_FILE_SYSTEMS,
    file_system_of,
    find_missing_limits,
    find_server_problems,
)
from app.health.results import Check
from tests.health.test_database import another_session, postgresql
from tests.support.pgbouncer import pgbouncer
from tests.support.service import services_of

PLENTY = Limits(timedelta(seconds=20), timedelta(seconds=30))
GOOD = ServerFacts(version=16, encoding="UTF8", connections=97, own_connections=None, used=3)
MOUNTS = """\
29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
64 29 0:52 / /srv/sounds rw,relatime shared:31 master:7 - nfs4 files:/sounds rw,vers=4.2
"""


async def found_in(database_url: str, name: str) -> Check:
    """What doctor's check of this name finds."""
    async with services_of(database_url) as services:
        check = all_checks(services)[name]
        [(_, found)] = [each async for each in run_checks({name: check}, reason, PLENTY)]
    assert isinstance(found, Check)
    return found


async def test_database_as_the_tests_have_it_is_well_set_up(database_url: str) -> None:
    setup, timeouts = [await found_in(database_url, name) for name in ("database_setup", "timeouts")]

    assert (setup.status, timeouts.status) == ("ok", "ok")
    if database_url.startswith("sqlite"):
        assert (setup.detail[:15], timeouts.detail) == ("SQLite, wal on ", "SQLite needs none")
    else:
        assert setup.detail.startswith("PostgreSQL ")
        assert timeouts.detail == "idle_in_transaction_session_timeout 10 s, lock_timeout 5 s, statement_timeout 15 s"


@postgresql
async def test_timeouts_that_the_url_switches_off_are_found(database_url: str) -> None:
    # The space separates options, and stands as it is in the query of this URL.
    found = await found_in(f"{database_url}&options=-c statement_timeout=0 -c lock_timeout=0", "timeouts")

    assert found.status == "degraded"
    assert found.detail == (
        "lock_timeout, statement_timeout: off here, so what hangs keeps its locks; behind PgBouncer add pgbouncer=true "
        "to SOUNDPOST_DATABASE_URL, take them out of its `options`, or set them for the role by ALTER ROLE … SET "
        "lock_timeout = '5s', statement_timeout = '15s'"
    )


@postgresql
async def test_timeouts_that_pgbouncer_drops_are_found_and_the_flag_keeps_them(database_url: str) -> None:
    async with pgbouncer(database_url, 5, ignored="options") as address:
        dropped, kept = [
            await found_in(f"postgresql://{address}{query}", "timeouts") for query in ("", "?pgbouncer=true")
        ]

    assert dropped.status == "degraded"
    assert "idle_in_transaction_session_timeout, lock_timeout, statement_timeout: off" in dropped.detail
    assert "behind PgBouncer add pgbouncer=true to SOUNDPOST_DATABASE_URL" in dropped.detail
    assert kept.status == "ok"


@postgresql
async def test_pgbouncer_that_refuses_our_session_is_found(database_url: str) -> None:
    async with pgbouncer(database_url, 5) as address:
        found = await found_in(f"postgresql://{address}", "database")

    assert found.status == "down"
    assert found.detail.endswith(": add pgbouncer=true to SOUNDPOST_DATABASE_URL, as PgBouncer is behind it")


@postgresql
async def test_database_that_does_not_exist_is_to_be_created(database_url: str) -> None:
    elsewhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
    found = await found_in(elsewhere, "database")

    assert found.status == "down"
    assert found.detail.endswith("does not exist): create it, or name another in SOUNDPOST_DATABASE_URL")


@postgresql
async def test_role_that_does_not_exist_is_to_be_corrected(database_url: str) -> None:
    elsewhere = make_url(database_url).set(username="nobody").render_as_string(hide_password=False)
    found = await found_in(elsewhere, "database")

    assert found.status == "down"
    assert found.detail.endswith(": check the user and the password in SOUNDPOST_DATABASE_URL")


@postgresql
async def test_database_with_another_encoding_is_found(database_url: str) -> None:
    name = f"{make_url(database_url).database}_ascii"
    with another_session(database_url) as other:
        other.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".encode())
        url = make_url(database_url).set(database=name).render_as_string(hide_password=False)
        found = await found_in(url, "database_setup")
        other.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    assert found.status == "degraded"
    assert found.detail.startswith("the database stores SQL_ASCII, which cannot hold every prompt: create one with ")


@postgresql
async def test_database_with_fewer_connections_than_a_process_opens_is_found(database_url: str) -> None:
    with another_session(database_url) as other:
        other.execute(f"ALTER DATABASE {make_url(database_url).database} CONNECTION LIMIT 17".encode())
    found = await found_in(database_url, "database_setup")

    assert found.status == "degraded"
    assert found.detail == (
        "a process opens up to 18 connections, and gets 17: lower SOUNDPOST_DATABASE_POOL_SIZE and "
        "SOUNDPOST_DATABASE_MAX_OVERFLOW, or raise max_connections and the limits of the role and the database"
    )


async def test_sqlite_without_its_write_ahead_log_is_found(tmp_path: Path) -> None:
    # This way of locking knows no shared memory, as some network file systems do not.
    url = f"sqlite+aiosqlite:///file:{tmp_path}/soundpost.db?vfs=unix-dotfile&uri=true"
    found = await found_in(url, "database_setup")

    assert found.status == "degraded"
    assert found.detail.startswith(
        "the journal mode is delete instead of wal, so readers and the writer block each other:"
    )


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        (GOOD, None),
        (GOOD._replace(version=11), "the server is PostgreSQL 11: use 12 or later"),
        (GOOD._replace(used=88), "88 of the server's 97 connections are in use: raise max_connections"),
        (GOOD._replace(connections=17), "a process opens up to 18 connections, and gets 17"),
        (GOOD._replace(own_connections=5), "a process opens up to 18 connections, and gets 5"),
    ],
)
def test_server_is_judged_by_its_facts(facts: ServerFacts, problem: str | None) -> None:
    found = list(find_server_problems(facts, DatabaseLimits()))

    assert [each[: len(problem or "")] for each in found] == ([problem] if problem else [])


def test_smaller_pool_needs_fewer_connections() -> None:
    limits = replace(DatabaseLimits(), pool_size=2, max_overflow=0)

    assert list(find_server_problems(GOOD._replace(own_connections=5), limits)) == []


@pytest.mark.parametrize(("silence", "is_late"), [(None, False), (10, False), (7200, True), (0, True)])
def test_server_that_notices_late_that_a_machine_is_gone_is_found(silence: int | None, is_late: bool) -> None:
    limits = SessionLimits({"statement_timeout": 1}, silence)
    found = list(find_missing_limits(limits, wanted_limits(DatabaseLimits())))

    assert [each.startswith("tcp_keepalives_idle is ") for each in found] == [True] * is_late


@pytest.mark.parametrize(("device", "kind"), [("8:1", "ext4"), ("0:52", "nfs4"), ("9:9", None)])
def test_file_system_is_told_by_the_device(device: str, kind: str | None) -> None:
    assert file_system_of(device, MOUNTS) == kind
    assert (kind in NETWORK_FILE_SYSTEMS) is (kind == "nfs4")


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ('password authentication failed for user "sounds"', "check the user and the password"),
        ("sorry, too many clients already", "lower SOUNDPOST_DATABASE_POOL_SIZE, or raise max_connections"),
        ("Connection refused", "check SOUNDPOST_DATABASE_URL"),
    ],
)
def test_refusal_of_a_server_has_its_advice(message: str, advice: str) -> None:
    assert advice_on(ConnectionError(message)).startswith(advice)


def test_error_without_a_message_is_told_by_its_kind() -> None:
    assert reason(TimeoutError()) == "TimeoutError"
