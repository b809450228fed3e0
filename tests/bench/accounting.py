"""What processes cost, by the operating system's accounting, and on what machine."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.support.settings import ROOT

TICK = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat behind the name, which is in brackets: the times of the process and of its children that
# have ended, in the program and in the kernel.
TIMES = slice(11, 15)


def cpu_seconds(pid: int) -> float:
    """The CPU that a process and all of its descendants have used, those that have ended too."""
    return sum(_ticks(each) for each in _tree(pid)) / TICK


def resident_kib(pid: int) -> int:
    """The memory that a process and its descendants have in use, in KiB."""
    return sum(_resident(each) for each in _tree(pid))


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    return 0


def _tree(pid: int) -> Iterator[int]:
    yield pid
    # A process may end meanwhile; its time is its parent's then.
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def _ticks(pid: int) -> int:
    with suppress(OSError):
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[TIMES]))
    return 0


def describe() -> str:
    """The machine, the versions, the moment and the commit, in one line."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    changed = " with changes" if _output("git", "-C", str(ROOT), "status", "--porcelain", "app") else ""
    commit = _output("git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "app") + changed
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "sqlalchemy", "asyncpg", "uvicorn"))
    node = f", Node {_output('node', '--version')}" if shutil.which("node") else ""
    return (
        f"{now}, app/ of commit {commit}, on {os.cpu_count()} × {_cpu_model()}, {_memory()} GiB, "
        f"fdatasync {_sync_ms():.2f} ms, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {packages}, SQLite {sqlite3.sqlite_version}{node}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _sync_ms() -> float:
    """The median time until a page that is appended is on the disk, where the databases are too."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            began = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return median(times)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
