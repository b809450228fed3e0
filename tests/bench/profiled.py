"""
The `soundpost` command, whose main thread is sampled between two SIGUSR1.

Run as `python -m tests.bench.profiled FILE serve …`; FILE is written at the second signal. cProfile
would not do: it takes the switches between greenlets for calls.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

# Seconds of the process's CPU between two samples.
INTERVAL = 0.002
# Packages that are told by name; others are the standard library.
PACKAGES = (
    *("app", "sqlalchemy", "aiosqlite", "asyncpg", "httpx"),
    *("pydantic", "fastapi", "starlette", "uvicorn", "structlog"),
)


class Sampler:
    """Counts samples by the package of the running function, and by each function of ours that it runs for."""

    def __init__(self, file: Path) -> None:
        self._file, self._is_on = file, False
        self._packages: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()

    def toggle(self, *_: object) -> None:
        """Begin, or end and write the file."""
        self._is_on = not self._is_on
        interval = INTERVAL if self._is_on else 0
        signal.setitimer(signal.ITIMER_PROF, interval, interval)
        if not self._is_on:
            # In one step, for whoever waits for the file.
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps([self._packages, self._functions]))
            part.rename(self._file)

    def sample(self, _: int, frame: FrameType | None) -> None:
        """Note what runs."""
        self._packages[_package_of(frame)] += 1
        functions = set()
        while frame is not None:
            path = frame.f_code.co_filename
            if "/app/" in path:
                functions.add(f"{path[path.rindex('/app/') + 1 :]}: {frame.f_code.co_qualname}")
            frame = frame.f_back
        self._functions.update(functions)


def shares(file: Path) -> tuple[Counter[str], Counter[str]]:
    """The samples by package and by function of ours, each in % of all."""
    packages, functions = json.loads(file.read_text())
    whole = sum(packages.values()) / 100
    by_package, by_function = (
        Counter({name: count / whole for name, count in found.items()}) for found in (packages, functions)
    )
    return by_package, by_function


def _package_of(frame: FrameType | None) -> str:
    path = frame.f_code.co_filename if frame else ""
    return next((package for package in PACKAGES if f"/{package}/" in path), "Python and its libraries")


if __name__ == "__main__":
    sampler = Sampler(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGUSR1, sampler.toggle)
    signal.signal(signal.SIGPROF, sampler.sample)
    from app.cli.main import run

    run()
