"""Soundpost's commands as real processes."""

import multiprocessing
import os
import random
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx

from app.config import PREFIX
from tests.support.api import client_of
from tests.support.command import run_command
from tests.support.sandbox import control
from tests.support.settings import KEY, LOOPBACK, ROOT, SECRET_KEY, UPSTREAM_KEY
from tests.support.wait import eventually

# Commands are forked from a process that has imported the application already: that takes about a second of CPU time.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["app.cli.main", "app.cli.demo", "app.server", run_command.__module__])


@dataclass
class Process:
    """One of our processes. `url` is where it listens, if it does."""

    process: ForkServerProcess
    output_file: Path
    log_file: Path
    url: str = ""

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has written to standard output."""
        return self.output_file.read_text()

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self.log_file.read_text()

    @property
    def children(self) -> list[int]:
        """The processes that it started and that still run."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    @property
    def runnable_seconds(self) -> float:
        """The time that its main thread has used a processor, or waited for one that others used."""
        ran, waited, _ = Path(f"/proc/{self.pid}/schedstat").read_text().split()
        return (int(ran) + int(waited)) / 1e9

    def memory_kib(self, field: str = "VmRSS") -> int:
        """A figure of /proc/PID/status: VmRSS is the memory in use, VmHWM the most that was."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0])

    def kill(self) -> None:
        """End it as a crash of the machine would."""
        self.process.kill()
        self.process.join()

    async def stop(self, number: int = signal.SIGTERM, within: float = 20) -> int:
        """Send a signal; return the exit code."""
        os.kill(self.pid, number)
        return await self.wait(within)

    async def wait(self, within: float = 20) -> int:
        """Wait for its end; return the exit code."""
        await eventually(lambda: not self.is_alive, within)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def pause(self) -> None:
        """Stop it without its knowledge, as a machine without processor time does."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)


@dataclass(frozen=True)
class CommandResult:
    """What a command that has ended printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


class Processes:
    """
    Starts commands of `soundpost`; use as a context manager, which kills them all at its end.

    Settings are given as in `upstream_rate="20/1"`; None unsets one. Commands see
    neither the settings of this environment nor any .env: each runs in `folder`,
    which should be empty.
    """

    def __init__(self, folder: Path, **settings: str | None) -> None:
        self.folder = folder
        self._settings: dict[str, str | None] = {
            "upstream_api_key": UPSTREAM_KEY,
            "api_keys": f"tests:{KEY}",
            "secret_keys": SECRET_KEY,
            # The sandbox serves its audio there.
            "egress_allow": LOOPBACK,
            **settings,
        }
        self._started: list[Process] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            # This ends paused processes too.
            process.kill()

    async def sandbox(self, *arguments: str, **controls: Any) -> Process:
        """Start a stand-in upstream; `controls` are those of its POST /control, such as delay=0.1."""
        sandbox = await self._listening("sandbox", "--port", "0", *arguments)
        await control(sandbox.url, **{"delay": 0.1, **controls})
        return sandbox

    async def serve(
        self, database_url: str, upstream_url: str, *arguments: str, port: int | None = None, **settings: str | None
    ) -> Process:
        """Start the service and wait until it is ready; its public URL is its own address unless another is given."""
        port = port or free_port()
        own = {"public_url": f"http://127.0.0.1:{port}", **self._settings, **settings}
        urls = {"database_url": database_url, "upstream_url": upstream_url}
        service = await self._listening("serve", "--port", str(port), *arguments, **own, **urls)
        await self._ready(service)
        return service

    def worker(self, database_url: str, upstream_url: str, **settings: str | None) -> Process:
        """The workers without a server; callbacks come if `public_url` is that of a service."""
        return self.start("worker", **settings, database_url=database_url, upstream_url=upstream_url)

    async def run(self, *command: str, **settings: str | None) -> CommandResult:
        """Run a command to its end."""
        process = self.start(*command, **settings)
        code = await process.wait(within=120)
        return CommandResult(code, process.output, process.log)

    def start(self, *command: str, **settings: str | None) -> Process:
        """Start a command, without waiting for anything."""
        output, log = (self.folder / f"{len(self._started)}-{command[0]}.{kind}" for kind in ("out", "log"))
        for file in (output, log):
            file.touch()
        max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        arguments = (command, self.folder, self.environment(**settings), output, log, max_files)
        process = _FORKED.Process(target=run_command, args=arguments)
        process.start()
        self._started.append(Process(process, output, log))
        return self._started[-1]

    def environment(self, **settings: str | None) -> dict[str, str]:
        """The environment of a command: these settings over the common ones, and no settings of this environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        chosen = {**self._settings, **settings}
        ours = {f"{PREFIX}{name.upper()}": value for name, value in chosen.items() if value is not None}
        return {**inherited, "PYTHONPATH": str(ROOT), **ours}

    async def _listening(self, *command: str, **settings: str | None) -> Process:
        server = self.start(*command, **settings)

        def has_said_where() -> bool:
            assert server.is_alive, server.log
            return server.output.endswith("\n")

        await eventually(has_said_where, within=60)
        assert " listening on " in server.output, server.output
        server.url = server.output.split()[-1]
        return server

    async def _ready(self, service: Process) -> None:
        async def is_ready() -> bool:
            assert service.is_alive, service.log
            try:
                return (await client.get("/readyz")).is_success
            except httpx.TransportError:
                return False

        async with client_of(service.url) as client:
            await eventually(is_ready, 60)


@asynccontextmanager
async def service_process(
    database_url: str, folder: Path, **settings: str | None
) -> AsyncIterator[tuple[httpx.AsyncClient, Process]]:
    """A client of one service, and the sandbox that it submits to."""
    with Processes(folder, **settings) as processes:
        sandbox = await processes.sandbox()
        async with client_of((await processes.serve(database_url, sandbox.url)).url) as client:
            yield client, sandbox


def free_port() -> int:
    """An unused port, from below the range out of which the system gives ports to connections."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - two test runs should choose different ones
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
