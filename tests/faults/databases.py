"""Taking a database away from the service, and giving it back."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from app.database.migrations import migrate
from tests.support.postgres import postgres

SOCKET = ".s.PGSQL.5432"
IN_USE = (sqlite3.OperationalError, psycopg.errors.LockNotAvailable)

Outage = Callable[[], AbstractContextManager[None]]


@contextmanager
def locked(database_url: str, patience: float = 30) -> Iterator[None]:
    """
    Hold every task against all others, as a long transaction of somebody else does.

    Raises one of IN_USE where somebody else holds one for longer than `patience` seconds.
    """
    url = make_url(database_url)
    if url.drivername.startswith("sqlite"):
        connection = sqlite3.connect(str(url.database), isolation_level=None, timeout=patience)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()
        return
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as other:
        other.execute(f"SET LOCAL lock_timeout = {round(patience * 1000)}".encode())
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


@contextmanager
def breakable_postgres() -> Iterator[tuple[str, Outage]]:
    """The URL of a migrated database on a server of its own, and a way to crash that server for a while."""
    with postgres() as server:
        url = server.get_uri(driver="asyncpg")
        migrate(url)
        yield url, lambda: _crashed(server)


@contextmanager
def _crashed(server: Any) -> Iterator[None]:
    process = server.get_postmaster_info().process
    # What `pg_ctl stop -m immediate` sends: connections break, nothing is flushed, and a start must recover.
    os.kill(process.pid, signal.SIGQUIT)
    process.wait(10)
    yield
    server.ensure_postgres_running()


@asynccontextmanager
async def silenced(database_url: str, folder: Path) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """
    The URL of a way to a PostgreSQL server, and what lets all connections through it fall silent, new ones excepted.

    So does a server that fails over: its successor has the address, and nobody ends
    what was connected to it before.
    """
    url = make_url(database_url)
    behind, before = Path(str(url.query["host"])) / SOCKET, folder / SOCKET
    carrying: dict[asyncio.Task[None], asyncio.Event] = {}

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_speak: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            await may_speak.wait()
            writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, onward_writer = await asyncio.open_unix_connection(str(behind))
        may_speak = asyncio.Event()
        may_speak.set()
        both = [asyncio.create_task(carry(*way, may_speak)) for way in ((reader, onward_writer), (onward, writer))]
        carrying.update(dict.fromkeys(both, may_speak))
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, onward_writer):
            each.close()

    def fall_silent() -> None:
        for may_speak in carrying.values():
            may_speak.clear()

    server = await asyncio.start_unix_server(connect, str(before))
    try:
        yield url.set(query={"host": str(folder)}).render_as_string(hide_password=False), fall_silent
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)
