"""A real PgBouncer in transaction mode, in front of the tests' PostgreSQL server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.processes import free_port
from tests.support.wait import eventually

CONFIGURATION = """
[databases]
* = host={folder} port=5432 user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
ignore_startup_parameters = {ignored}
"""


@asynccontextmanager
async def pgbouncer(database_url: str, size: int, ignored: str = "") -> AsyncIterator[str]:
    """
    The address of this database behind a pooler with `size` connections to it, as user@host:port/name.

    `ignored` are the parameters that clients may send at the start of a session, and that
    have no effect.
    """
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.fail("PgBouncer is not installed here; these tests need the real one: apt-get install pgbouncer")
    url, port = make_url(database_url), free_port()
    behind = str(url.query["host"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pgbouncer.ini"
        file.write_text(CONFIGURATION.format(folder=behind, user=url.username, port=port, size=size, ignored=ignored))
        # PgBouncer does not run as root; the owner of the server's folder may enter it.
        user = os.stat(behind).st_uid if os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user, -1)
            os.chown(file, user, -1)
        address = f"{url.username}@127.0.0.1:{port}/{url.database}"

        def is_up() -> bool:
            try:
                psycopg.connect(f"postgresql://{address}", connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        with _running([binary, str(file)], user):
            await eventually(is_up)
            yield address


@contextmanager
def _running(command: list[str], user: int | None) -> Iterator[None]:
    with subprocess.Popen(command, user=user, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
