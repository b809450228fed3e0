"""A service that has nothing to do, and how long it takes to be one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import counted_sqlite
from tests.bench.report import Figure
from tests.bench.stand import Stand
from tests.support.settings import ROOT

# Seconds: until the loops have looked around for the first time, and of the look at them.
FIRST_LOOK, LOOK, QUICK_LOOK = 5, 20, 5


def idle(stand: Stand) -> list[Figure]:
    """A service with nothing to do: its share of a core, and statements a second."""
    file = stand.store.folder / "idle.statements" if stand.store.is_sqlite else None
    look = QUICK_LOOK if stand.size.is_quick else LOOK
    with stand.running("idle") as service:
        time.sleep(FIRST_LOOK)
        before = service.cpu()
        time.sleep(look)
        share = (service.cpu() - before) / look * 100
        if file is None:
            with stand.store.logged(service.database_url) as found:
                time.sleep(look)
            statements, commits = found[0].statements, found[0].commits
    if file is not None:
        with stand.running("idle", counts=file):
            time.sleep(FIRST_LOOK)
            first = counted_sqlite.read(file)
            time.sleep(look)
            last = counted_sqlite.read(file)
        statements, commits = last[0] - first[0], last[1] - first[1]
    return [
        Figure("CPU of an idle service", [share], "% of a core", f"over {look} s", at_most=0.5),
        Figure("statements", [statements / look], "/s", f"{commits / look:.2f} commits/s", at_most=1),
    ]


def startup(stand: Stand) -> list[Figure]:
    """`serve` from its start to its first answer, its memory when idle, and the demo."""
    database_url = stand.store.create(stand.new_name("startup"))
    took, spent, sizes = [], [], []
    for _ in range(stand.size.rounds):
        began = time.monotonic()
        with stand.running("startup", url=database_url) as service:
            took.append(time.monotonic() - began)
            spent.append(service.cpu())
            time.sleep(2)
            sizes.append(service.resident_kib() / 1024)
    figures = [
        Figure("start → first answer of /readyz", took, "s", "the schema is there already", at_most=0.9),
        Figure("CPU of the start", spent, "s"),
        Figure("memory of an idle service", sizes, "MiB", "resident", at_most=95),
    ]
    if stand.store.is_sqlite:
        figures.append(Figure("soundpost demo", [_demo()], "s", "what make demo runs once it is installed", at_most=10))
    return figures


def _demo() -> float:
    """Seconds that the demo takes."""
    with tempfile.TemporaryDirectory(prefix="soundpost-bench-") as folder:
        began = time.monotonic()
        command = [sys.executable, "-m", "app.cli", "demo"]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=Path(folder), env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began
