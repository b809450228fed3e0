"""
The `soundpost` command, which counts the statements that it sends to SQLite, by whatever library.

Run as `python -m tests.bench.counted_sqlite FILE serve …`; FILE then begins with two 64-bit
integers: all statements, with BEGIN and COMMIT, and the commits.
"""

from __future__ import annotations

import mmap
import sqlite3
import struct
import sys
from pathlib import Path
from typing import Any

FORMAT = struct.Struct("=qq")


def count_into(file: Path) -> None:
    """Count from now on, on all connections that are opened."""
    file.write_bytes(FORMAT.pack(0, 0))
    with file.open("r+b") as opened:
        counts = memoryview(mmap.mmap(opened.fileno(), FORMAT.size)).cast("q")
    connect = sqlite3.connect

    def note(statement: str) -> None:
        # What a trigger runs is shown as a comment.
        if not statement.startswith("--"):
            counts[0] += 1
            counts[1] += statement == "COMMIT"

    def connect_counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(note)
        return connection

    setattr(sqlite3, "connect", connect_counted)  # noqa: B010 - mypy refuses to assign to a function


def read(file: Path) -> tuple[int, int]:
    """The statements and commits so far."""
    statements, commits = FORMAT.unpack(file.read_bytes())
    return statements, commits


if __name__ == "__main__":
    count_into(Path(sys.argv.pop(1)))
    from app.cli.main import run

    run()
