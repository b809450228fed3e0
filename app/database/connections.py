"""Connections to PostgreSQL: from one URL, for the pool, for LISTEN and for migrations, by either driver."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from app.config.database_url import ASYNCPG_TLS, DatabaseLimits, PostgresUrl, is_sqlite, read_postgres_url

# Each driver is imported where it connects: a process needs one of them, or none.
APPLICATION_NAME = "soundpost"
# For a server that does not answer: at connecting, at the check of a pooled connection, and beyond the server's own
# limit of a statement.
CONNECT_TIMEOUT = timedelta(seconds=5)
PING_TIMEOUT = timedelta(seconds=3)
# A process whose machine vanished in a transaction keeps its locks for this long. No transaction of ours spans a call.
IDLE_IN_TRANSACTION_TIMEOUT = timedelta(seconds=10)
# Also after how long the server, or the client, finds that a silent peer is gone.
KEEPALIVES = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
CREDENTIALS = ("user", "password")
TLS_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_MILLISECOND = timedelta(milliseconds=1)
_ACCESS = text(
    "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',"
    # Null, until there is this table.
    " has_table_privilege(to_regclass('tasks'), 'INSERT')"
)

_SERVER = text(
    "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),"
    " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    # Without a limit it is -1, and `least` ignores nulls.
    " least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1)),"
    " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
    " FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"
)
# By its name in pg_settings each of them is a number of milliseconds. The kernel's own keepalives are told by SHOW
# alone, and are none on a socket of a folder.
_LIMITS = text(
    "SELECT name, setting::bigint FROM pg_settings"
    " WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout') ORDER BY name"
)
_SILENCE = text("SELECT current_setting('tcp_keepalives_idle')::int WHERE inet_client_addr() IS NOT NULL")


class Access(NamedTuple):
    """Why a server would refuse writes."""

    is_standby: bool
    is_read_only: bool
    may_insert: bool | None


class ServerFacts(NamedTuple):
    """
    A server: its major version, the database's encoding, and connections.

    `connections` are those that it has for all who are no superusers, `own_connections` those of our role and
    database where they are limited, and `used` those that all clients have now.
    """

    version: int
    encoding: str
    connections: int
    own_connections: int | None
    used: int


class SessionLimits(NamedTuple):
    """The timeouts of a session in milliseconds, 0 for none, and the seconds of silence before a TCP keepalive."""

    timeouts: Mapping[str, int]
    silence: int | None


def postgres_engine(url: str, limits: DatabaseLimits, **options: Any) -> AsyncEngine:
    """An engine for this URL; nothing connects yet. `options` are those of `create_async_engine`."""
    target = read_postgres_url(url)
    arguments = _asyncpg_arguments(target, limits) if target.driver == "asyncpg" else _psycopg_arguments(target, limits)
    engine = create_async_engine(f"postgresql+{target.driver}://", connect_args=arguments, **options)
    if target.is_pooled:
        event.listen(engine.sync_engine, "begin", _limit_transactions(target, limits))
    return engine


def credentials(url: str) -> Mapping[str, str | None]:
    """The user and the password of a URL, as both drivers name them."""
    given = read_postgres_url(url).parameters
    return {name: given.get(name) for name in CREDENTIALS}


def is_same_database(one: str, other: str) -> bool:
    """Whether two URLs differ in their user and password at most."""
    if one == other or is_sqlite(one) or is_sqlite(other):
        return one == other
    first, second = (
        replace(target, parameters=_without_credentials(target)) for target in map(read_postgres_url, (one, other))
    )
    return first == second


def migration_engine(url: str) -> Engine:
    """A synchronous engine for this URL without limits on time, by psycopg whatever driver the URL names."""
    import psycopg

    target = read_postgres_url(url)
    parameters: dict[str, Any] = {**_extra_parameters(target), **target.parameters}

    def connect() -> Any:
        try:
            return psycopg.connect(**parameters, prepare_threshold=None)
        except (TypeError, ValueError) as error:
            raise OperationalError(None, None, error) from error

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def _without_credentials(target: PostgresUrl) -> Mapping[str, str]:
    return {name: value for name, value in target.parameters.items() if name not in CREDENTIALS}


async def read_access(session: AsyncSession) -> Access:
    """Whether the server of this session takes writes, of it and of its role."""
    return Access(*(await session.execute(_ACCESS)).one())


async def read_server(session: AsyncSession) -> ServerFacts:
    """What the server of this session is."""
    return ServerFacts(*(await session.execute(_SERVER)).one())


async def read_limits(session: AsyncSession) -> SessionLimits:
    """What this session really has of the limits that were asked for."""
    timeouts = {row.name: row.setting for row in await session.execute(_LIMITS)}
    return SessionLimits(timeouts, await session.scalar(_SILENCE))


def wanted_limits(limits: DatabaseLimits) -> Mapping[str, timedelta]:
    """After how long the server ends a statement, a wait for a lock, and a transaction without statements."""
    return {
        "statement_timeout": limits.statement_timeout,
        "lock_timeout": limits.lock_timeout,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
    }


def _server_settings(target: PostgresUrl, limits: DatabaseLimits) -> Mapping[str, str]:
    """What the server ends by itself, even if this process is gone, unless `options` in the URL say otherwise."""
    settings = {
        **{name: str(limit // _MILLISECOND) for name, limit in wanted_limits(limits).items()},
        **{f"tcp_{name}": value for name, value in KEEPALIVES.items()},
    }
    given = _options(target)
    return {name: value for name, value in settings.items() if name not in given}


def _options(target: PostgresUrl) -> str:
    return target.parameters.get("options", os.environ.get("PGOPTIONS", ""))


def _limit_transactions(target: PostgresUrl, limits: DatabaseLimits) -> Any:
    """
    Set the limits at the beginning of each transaction, and for it alone.

    A pooler refuses them at the start of a session, and gives the session to others
    after the transaction.
    """
    calls = ", ".join(
        f"set_config('{name}', '{value}', true)" for name, value in _server_settings(target, limits).items()
    )

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT {calls}")

    return begin


def _asyncpg_arguments(target: PostgresUrl, limits: DatabaseLimits) -> dict[str, Any]:
    given = target.parameters
    tls = {name: value for name, value in given.items() if name in ASYNCPG_TLS}
    arguments: dict[str, Any] = {
        "user": given.get("user"),
        "password": given.get("password"),
        "database": given.get("dbname"),
        "passfile": given.get("passfile"),
        "target_session_attrs": given.get("target_session_attrs"),
        "timeout": max(0.0, float(given.get("connect_timeout", CONNECT_TIMEOUT.total_seconds()))) or None,
        "command_timeout": (limits.statement_timeout + PING_TIMEOUT).total_seconds(),
    }
    if "host" in given:
        arguments["host"] = given["host"].split(",")
    if "port" in given:
        ports = [int(port or 5432) for port in given["port"].split(",")]
        arguments["port"] = ports if len(ports) > 1 else ports[0]
    if tls.get("sslrootcert") == "system":
        # libpq's word for the certificates of the machine; it stands for verify-full.
        arguments["ssl"] = ssl.create_default_context()
        del tls["sslrootcert"]
    if tls:
        arguments["dsn"] = f"postgresql://?{urlencode(tls)}"
    name = given.get("application_name", os.environ.get("PGAPPNAME", APPLICATION_NAME))
    options = _options(target)
    if target.is_pooled:
        arguments["statement_cache_size"] = arguments["prepared_statement_cache_size"] = 0
        arguments["prepared_statement_name_func"] = lambda: f"soundpost_{uuid4().hex}"
    else:
        ours = " ".join(f"-c {name}={value}" for name, value in _server_settings(target, limits).items())
        options = f"{ours} {options}".strip()
    arguments["server_settings"] = {"application_name": name, **({"options": options} if options else {})}
    arguments["async_creator_fn"] = _connect_asyncpg
    return {name: value for name, value in arguments.items() if value is not None}


def _psycopg_arguments(target: PostgresUrl, limits: DatabaseLimits) -> dict[str, Any]:
    # psycopg has no timeout for a running statement: only TCP finds a peer that is gone.
    patience = {"tcp_user_timeout": str(limits.statement_timeout // _MILLISECOND)}
    parameters = {**_extra_parameters(target), **patience, **target.parameters}
    return {**parameters, "prepare_threshold": None, "async_creator_fn": _connect_psycopg}


def _extra_parameters(target: PostgresUrl) -> Mapping[str, str]:
    """The arguments of psycopg beside the URL; the URL's own parameters win."""
    extra = {
        "fallback_application_name": APPLICATION_NAME,
        # Otherwise PGCLIENTENCODING could name another.
        "client_encoding": "UTF8",
        "connect_timeout": str(CONNECT_TIMEOUT // timedelta(seconds=1)),
        **KEEPALIVES,
    }
    return {name: value for name, value in extra.items() if name not in target.parameters}


async def _connect_asyncpg(**arguments: Any) -> Any:
    import asyncpg  # type: ignore[import-untyped]

    try:
        return await asyncpg.connect(**arguments)
    except (TypeError, ValueError) as error:
        raise OperationalError(None, None, error) from error
    except OSError as error:
        # Python names no file when it cannot read a certificate.
        for name, path in parse_qsl(urlsplit(arguments.get("dsn", "")).query):
            if name in TLS_FILES and not os.access(path, os.R_OK):
                raise OSError(f"`{name}` names a file that cannot be read: {path}") from error
        raise


async def _connect_psycopg(conninfo: str = "", **arguments: Any) -> Any:
    import psycopg

    try:
        return await psycopg.AsyncConnection.connect(conninfo, **arguments)
    except (TypeError, ValueError) as error:
        raise OperationalError(None, None, error) from error
