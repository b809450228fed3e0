"""
What requests, tasks, waits and an idle service cost, beside servers that do less; prints figures, and whether they
keep their targets.

Starts all that it needs itself. `python -m tests.bench callbacks submit --database sqlite` measures some rows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.bench import stores, wrk
from tests.bench.accounting import describe
from tests.bench.report import RESULTS, Figure, show, write
from tests.bench.rows import crowds, deliveries, idle, latencies, pace, replicas, single_requests, whole_task
from tests.bench.stand import Size, Stand

Row = Callable[[Stand], list[Figure]]
# Those that --quick measures when no row is named.
MICRO: Mapping[str, Row] = {
    "callbacks": single_requests.callbacks,
    "submit": single_requests.submit,
    "reads": single_requests.reads,
    "first-page": single_requests.first_page,
}
ROWS: Mapping[str, Row] = {
    **MICRO,
    "whole-task": whole_task.whole_task,
    "profile": whole_task.profile,
    "latency": latencies.latency,
    "waiters": crowds.waiters,
    "streams": crowds.streams,
    "arrivals": crowds.arrivals,
    "idle": idle.idle,
    "startup": idle.startup,
    "webhooks": deliveries.webhooks,
    "pace": pace.pace,
    "replicas": replicas.replicas,
}
QUICK = Size(rounds=2, seconds=1, samples=30, is_quick=True)


def measure(names: list[str], databases: list[str], size: Size, file: Path | None, label: str) -> None:
    """Measure these rows on each database; each is printed and written as soon as it is done."""
    for kind in databases:
        with stores.opened(kind) as store, ExitStack() as stack:
            stand = Stand(store, size, stack)
            for name in names:
                machine, began = describe(), time.monotonic()
                figures = ROWS[name](stand)
                if figures:
                    title = f"{name}, {kind}" + (f", {label}" if label else "")
                    show(f"{title} ({time.monotonic() - began:.0f} s)", figures)
                    if file is not None:
                        write(title, machine, figures, file)


def main() -> int:
    """Read what to measure from the command line, and run."""
    about = {name: (row.__doc__ or "").splitlines()[0] for name, row in ROWS.items()}
    listed = "\n".join(f"  {name:14} {what}" for name, what in about.items())
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=…",
        description=__doc__,
        epilog=f"rows:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to measure; all, unless some are named")
    parser.add_argument(
        "--quick", action="store_true", help="few and short rounds; of the rows only the single requests"
    )
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, help="turns of each variant")
    parser.add_argument("--seconds", type=int, help="of a turn")
    parser.add_argument("--crowd", type=int, default=Size.crowd, help="how many wait at once")
    parser.add_argument(
        "--statements", action="store_true", help="on PostgreSQL, print the statements that were counted"
    )
    parser.add_argument("--label", default="", help="a word for the titles in the results, such as `before`")
    parser.add_argument("--write", type=Path, default=RESULTS, help="the file of the results")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    wrk.check_installed()
    # Crowds need a descriptor for each connection, here and in the servers, which inherit this.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    base = QUICK if given.quick else Size()
    rounds, seconds = given.rounds or base.rounds, given.seconds or base.seconds
    size = Size(rounds, seconds, base.samples, given.crowd, given.quick, given.statements)
    names = given.rows or list(MICRO if given.quick else ROWS)
    file = None if given.no_write else given.write
    measure(names, given.database or ["sqlite", "postgresql"], size, file, given.label)
    return 0


if __name__ == "__main__":
    sys.exit(main())
