"""Load from wrk, which costs less than the servers that it drives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from tests.bench.client import request_bytes

SCRIPT = Path(__file__).with_name("walk.lua")
MISSING = "wrk is missing. Install it with: apt-get install wrk (Debian, Ubuntu) or brew install wrk (macOS)."


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw, of `requests` that were answered: latencies in ms, its own CPU in seconds."""

    requests: int
    sent: int
    seconds: float
    refused: int
    lost: int
    p50: float
    p99: float
    max: float
    cpu: float


@dataclass
class Requests:
    """
    The requests of a run: a file of lines for walk.lua, and the files of their bodies.

    A walk that is `used_up` goes on behind the lines that earlier runs have sent; others begin again.
    """

    file: Path
    bodies: Sequence[Path] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    used_up: bool = False
    lines: int = 0
    sent: int = 0

    def options(self) -> list[str]:
        """wrk's options for the headers."""
        return [part for name, value in self.headers.items() for part in ("-H", f"{name}: {value}")]

    def take(self, count: int) -> list[bytes]:
        """The next requests as bytes, for a client that sends so many and no more."""
        lines = self.file.read_text().splitlines()
        chosen = list(islice(cycle(lines), self.sent, self.sent + count))
        if self.used_up:
            self.sent += count
        bodies = ["", *(file.read_text() for file in self.bodies)]
        return [self._bytes(line, bodies) for line in chosen]

    def _bytes(self, line: str, bodies: Sequence[str]) -> bytes:
        path, body, name = line.split(" ")
        method = "GET" if body == "0" else "POST"
        return request_bytes(method, path, self.headers, bodies[int(body)].replace("@ID@", name))


def check_installed() -> None:
    """Raise SystemExit with the way to install wrk."""
    if shutil.which("wrk") is None:
        raise SystemExit(MISSING)


def run(url: str, requests: Requests, connections: int, seconds: float) -> Load:
    """Send these requests for that long; wrk itself knows whole seconds, so it is asked for them as `1s`."""
    loads = run_at_once([(url, requests)], connections, seconds)
    return loads[0]


def run_at_once(targets: Sequence[tuple[str, Requests]], connections: int, seconds: float) -> list[Load]:
    """The same against several servers at once, with so many connections to each."""
    runs = [_start(url, requests, connections, seconds) for url, requests in targets]
    return [_end(process, requests, connections) for process, (_, requests) in zip(runs, targets, strict=True)]


def _start(url: str, requests: Requests, connections: int, seconds: float) -> subprocess.Popen[str]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT)]
    walk = [str(requests.file), str(requests.sent), *map(str, requests.bodies)]
    # The whole command is ours; wrk is found where the user has installed it.
    return subprocess.Popen([*command, *requests.options(), url, "--", *walk], stdout=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str], requests: Requests, connections: int) -> Load:
    assert process.stdout is not None
    output = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"wrk failed: {output}")
    seen = json.loads(output.splitlines()[-1])
    # Those under way at the end were sent too.
    sent = seen["requests"] + seen["lost"] + connections
    load = Load(**seen, sent=sent, cpu=usage.ru_utime + usage.ru_stime)
    if requests.used_up:
        requests.sent += load.sent
        if requests.sent >= requests.lines:
            raise SystemExit(f"{requests.file.name} has too few lines: {requests.sent} were sent of {requests.lines}")
    return load
