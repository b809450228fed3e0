"""Rounds in which variants take turns: requests a second, and what each request costs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from sqlalchemy import make_url

from tests.bench import wrk
from tests.bench.report import Figure, ratios
from tests.bench.servers import BASELINES, Server
from tests.bench.stores import Store

SERVICE = "service"


@dataclass(frozen=True)
class Round:
    """One turn of one variant. CPU is in µs a request: of the server, of the database and of the client."""

    rate: float
    server: float = 0
    database: float = 0
    client: float = 0
    p50: float = 0
    p99: float = 0
    refused: float = 0


class Variant(Protocol):
    """One of those that take turns."""

    name: str

    def run(self, store: Store, seconds: float) -> Round:
        """Take one turn."""


@dataclass
class Served:
    """A server under load from wrk."""

    name: str
    server: Server
    requests: wrk.Requests
    connections: int

    def run(self, store: Store, seconds: float) -> Round:
        """Send requests; wait until the server has finished the last ones, and divide the CPU by all of them."""
        before = self.server.cpu(), store.cpu()
        load = wrk.run(self.server.url, self.requests, self.connections, seconds)
        self.server.settle()
        cpu = self.server.cpu() - before[0], store.cpu() - before[1]
        if load.requests == 0:
            raise SystemExit(f"{self.name} answered nothing:\n{self.server.log.read_text()[-2000:]}")
        each = 1e6 / load.sent
        refused = (load.refused + load.lost) / load.requests
        good = load.requests - load.refused
        return Round(good / load.seconds, cpu[0] * each, cpu[1] * each, load.cpu * each, load.p50, load.p99, refused)


@dataclass
class Pgbench:
    """PostgreSQL's own client, which inserts the same row."""

    database_url: str
    body: str
    connections: int
    name: str = "(d) pgbench"

    def run(self, store: Store, seconds: float) -> Round:
        """Insert rows for some seconds."""
        url = make_url(self.database_url)
        where = ["-h", str(url.query["host"]), "-U", url.username or "postgres", str(url.database)]
        load = ["-n", "-M", "prepared", "-c", str(self.connections), "-j", "1", "-T", str(max(1, round(seconds)))]
        script = ["-f", str(BASELINES / "insert.sql"), "-D", f"body={self.body}"]
        before = store.cpu()
        done = subprocess.run([str(store.pgbench), *load, *script, *where], capture_output=True, text=True, check=True)
        rate = re.search(r"tps = ([\d.]+)", done.stdout)
        count = re.search(r"actually processed: (\d+)", done.stdout)
        assert rate is not None
        assert count is not None
        return Round(float(rate[1]), database=(store.cpu() - before) * 1e6 / int(count[1]))


@dataclass
class Comparison:
    """The rounds of each variant; targets are ratios of the service's rate to a variant's."""

    store: Store
    variants: Sequence[Variant]
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def take_turns(self, rounds: int, seconds: float, *, warms_up: bool) -> None:
        """Let the variants take turns, after one that does not count if it `warms_up`."""
        for variant in self.variants if warms_up else ():
            variant.run(self.store, 1)
        for number in range(rounds):
            # The one that goes first changes, so that no one always comes after the same.
            shift = number % len(self.variants)
            for variant in [*self.variants[shift:], *self.variants[:shift]]:
                self.rounds.setdefault(variant.name, []).append(variant.run(self.store, seconds))

    def figures(self, targets: dict[str, float], unit: str, service_how: str) -> list[Figure]:
        """A line for each variant and one for each ratio."""
        lines = []
        for name, rounds in self.rounds.items():
            how = cost(rounds) + (f"; {service_how}" if name == SERVICE and service_how else "")
            lines.append(Figure(name, [each.rate for each in rounds], unit, how))
        service = self.rounds[SERVICE]
        ours = [each.rate for each in service]
        for name, rounds in self.rounds.items():
            if name != SERVICE:
                values = ratios(ours, (each.rate for each in rounds))
                lines.append(
                    Figure(f"service : {name}", values, "×", _cpu_ratio(service, rounds), at_least=targets.get(name))
                )
        return lines


def _cpu_ratio(ours: Sequence[Round], theirs: Sequence[Round]) -> str:
    """The CPU of a request beside the other's: it depends less than the rate on what else the machine does."""
    values = ratios((each.server for each in ours), (each.server for each in theirs))
    return f"CPU {median(values):.2f} × of it ({min(values):.2f}–{max(values):.2f})" if values else ""


def cost(rounds: Sequence[Round]) -> str:
    """What a request of these rounds cost, in words."""

    def middle(value: Callable[[Round], float]) -> float:
        return median(value(each) for each in rounds)

    parts = []
    if middle(lambda each: each.server):
        parts.append(f"CPU {middle(lambda each: each.server):,.0f} µs")
    if middle(lambda each: each.database):
        parts.append(f"database {middle(lambda each: each.database):,.0f} µs")
    if middle(lambda each: each.client):
        parts.append(f"wrk {middle(lambda each: each.client):,.0f} µs")
        parts.append(f"p50 {middle(lambda each: each.p50):,.1f} ms, p99 {middle(lambda each: each.p99):,.1f} ms")
    if any(each.refused for each in rounds):
        parts.append(f"**{max(each.refused for each in rounds):.1%} refused or lost**")
    return ", ".join(parts)
