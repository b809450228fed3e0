"""Soundpost's commands as real processes, and clients that speak to them."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.config import PREFIX

ROOT = Path(__file__).resolve().parents[2]
KEY = "the-key-of-a-caller-in-tests"
SECRET_KEY = "a-secret-key-of-the-tests-alone"
UPSTREAM_KEY = "sandbox"
FINAL = frozenset({"succeeded", "failed", "canceled"})


@dataclass
class Running:
    """A process of ours. `url` is where it listens, if it does; `log` is what it wrote to standard error."""

    process: subprocess.Popen[str]
    log_file: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def children(self) -> list[int]:
        """The processes that it started and that still run."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it as a crash of the machine would."""
        self.process.kill()
        self.process.wait()

    async def stop(self, number: int = signal.SIGTERM, within: float = 20) -> int:
        """Ask it to end; return its exit code."""
        self.process.send_signal(number)
        return await self.wait(within)

    async def wait(self, within: float = 20) -> int:
        """The exit code, once it has ended."""
        await eventually(lambda: not self.is_alive, within)
        return self.process.wait()

    def pause(self) -> None:
        """Let it stand still, as a machine without a turn does."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Ended:
    """What a command that ran to its end left behind."""

    code: int
    stdout: str
    stderr: str


class Processes:
    """
    Starts commands of `soundpost`; use as a context manager, whose end ends them all.

    Settings are given as in `upstream_rate="20/1"`, None for one that is to be
    unset. The settings of the surroundings are not seen, nor is any .env: each
    command runs in `folder`, which should be empty.
    """

    def __init__(self, folder: Path, **settings: str | None) -> None:
        self.folder = folder
        self._settings: dict[str, str | None] = {
            "upstream_api_key": UPSTREAM_KEY,
            "api_keys": f"tests:{KEY}",
            "secret_keys": SECRET_KEY,
            # Where the sandbox has its audio.
            "egress_allow": "127.0.0.0/8",
            **settings,
        }
        self._started: list[Running] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._started:
            # What is paused is killed all the same.
            running.kill()
            if running.process.stdout:
                running.process.stdout.close()

    async def sandbox(self, *arguments: str, **controls: Any) -> Running:
        """A stand-in upstream; `controls` are those of its POST /control, such as delay=0.1."""
        sandbox = await self._listening("sandbox", "--port", "0", *arguments)
        async with client_of(sandbox) as client:
            (await client.post("/control", json={"delay": 0.1, **controls})).raise_for_status()
        return sandbox

    async def serve(
        self, database_url: str, upstream: Running, *arguments: str, port: int | None = None, **settings: str | None
    ) -> Running:
        """The service, ready; its public URL is its own address unless another is given."""
        port = port or free_port()
        own = {"public_url": f"http://127.0.0.1:{port}", **self._settings, **settings}
        reached = {"database_url": database_url, "upstream_url": upstream.url}
        service = await self._listening("serve", "--port", str(port), *arguments, **own, **reached)
        await self._ready(service)
        return service

    def worker(self, database_url: str, upstream: Running, **settings: str | None) -> Running:
        """The loops alone; they need the `public_url` of a service for callbacks to come."""
        return self.start("worker", **settings, database_url=database_url, upstream_url=upstream.url)

    async def run(self, *command: str, **settings: str | None) -> Ended:
        """Run a command to its end."""
        running = self.start(*command, **settings)
        stdout, _ = await asyncio.to_thread(running.process.communicate)
        return Ended(running.process.returncode, stdout, running.log)

    def start(self, *command: str, **settings: str | None) -> Running:
        """Start a command and wait for nothing."""
        log_file = self.folder / f"{len(self._started)}-{command[0]}.log"
        with log_file.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", *command],
                cwd=self.folder,
                env=self.environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._started.append(Running(process, log_file))
        return self._started[-1]

    def environment(self, **settings: str | None) -> dict[str, str]:
        """What commands are started with: these settings over the common ones, and nothing from outside."""
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        chosen = {**self._settings, **settings}
        ours = {f"{PREFIX}{name.upper()}": value for name, value in chosen.items() if value is not None}
        return {**surroundings, "PYTHONPATH": str(ROOT), **ours}

    async def _listening(self, *command: str, **settings: str | None) -> Running:
        running = self.start(*command, **settings)
        assert running.process.stdout
        line = await asyncio.to_thread(running.process.stdout.readline)
        assert " listening on " in line, running.log
        running.url = line.split()[-1]
        return running

    async def _ready(self, service: Running) -> None:
        async def is_ready() -> bool:
            assert service.is_alive, service.log
            try:
                return (await client.get("/readyz")).is_success
            except httpx.TransportError:
                return False

        async with client_of(service) as client:
            await eventually(is_ready, 60)


def client_of(service: Running, key: str | None = KEY, **options: Any) -> httpx.AsyncClient:
    """A client of a process, with a caller's key; to be entered as a context manager."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=service.url, headers=headers, trust_env=False, timeout=30, **options)


@asynccontextmanager
async def running_service(
    folder: Path, database_url: str, **settings: str | None
) -> AsyncIterator[tuple[httpx.AsyncClient, Running]]:
    """A client of one service, and the sandbox that it orders from."""
    with Processes(folder, **settings) as processes:
        sandbox = await processes.sandbox()
        async with client_of(await processes.serve(database_url, sandbox)) as client:
            yield client, sandbox


async def order(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> dict[str, Any]:
    """Order a sound; return its task."""
    answer = await client.post("/v1/tasks", json={"prompt": prompt, **fields})
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


async def order_many(client: httpx.AsyncClient, count: int, at_once: int = 10) -> list[str]:
    """Order so many sounds; return the ids of their tasks."""
    places = asyncio.Semaphore(at_once)

    async def order_one() -> str:
        async with places:
            return str((await order(client))["id"])

    return await asyncio.gather(*(order_one() for _ in range(count)))


async def until_status(client: httpx.AsyncClient, task_id: str, *statuses: str, within: float = 30) -> dict[str, Any]:
    """The task once it is in one of these states."""
    deadline = time.monotonic() + within
    while True:
        task: dict[str, Any] = (await client.get(f"/v1/tasks/{task_id}")).raise_for_status().json()
        if task["status"] in statuses:
            return task
        assert time.monotonic() < deadline, task
        await asyncio.sleep(0.05)


async def until_final(client: httpx.AsyncClient, task_id: str, within: float = 30) -> dict[str, Any]:
    """The task once it has ended."""
    return await until_status(client, task_id, *FINAL, within=within)


async def journal(sandbox: Running, **wanted: str) -> list[dict[str, Any]]:
    """What a sandbox saw, oldest first; `wanted` narrows it: kind, path, task_id."""
    async with client_of(sandbox, None) as client:
        entries: list[dict[str, Any]] = (await client.get("/journal", params=wanted)).raise_for_status().json()
        return entries


async def submits_at(sandbox: Running) -> list[dict[str, Any]]:
    """The submits that arrived at a sandbox."""
    return await journal(sandbox, kind="request", path="/api/v1/generate/sounds")


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 10) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + within
    while True:
        outcome = condition()
        if outcome if isinstance(outcome, bool) else await outcome:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on, from below those that the system gives to whoever asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - so that test runs do not meet
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
