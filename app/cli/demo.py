"""`soundpost demo`: a sandbox, a service and one task, from its creation to files that play, with nothing set up."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from app.clips.media_types import SUFFIXES, measure
from app.config import PREFIX

TIMEOUT = timedelta(seconds=60)
STOP_TIMEOUT = timedelta(seconds=15)
POLL_INTERVAL = timedelta(milliseconds=50)
FINAL = frozenset({"succeeded", "failed", "canceled"})


class DemoFailed(Exception):
    """The demo did not end with playable files; the message says why."""


def run(prompt: str) -> int:
    """Run the demo. Returns the exit code: 0 only if every file was checked to be audio."""
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    try:
        asyncio.run(_run(prompt, console))
    except (DemoFailed, httpx.HTTPError, OSError) as error:
        console.print(f"The demo failed: {error or type(error).__name__}", style="red", markup=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped.")
        return 130
    return 0


async def _run(prompt: str, console: Console) -> None:
    if this := asyncio.current_task():
        # SIGTERM would end this process alone, and leave the processes that it has started.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soundpost-demo-")))
        console.print("Starting a sandbox upstream and the service …")
        upstream_url = await stack.enter_async_context(_sandbox(folder))
        key = secrets.token_urlsafe(24)
        url = await stack.enter_async_context(_service(folder, upstream_url, key))
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=TIMEOUT.total_seconds())
        api = _ApiClient(await stack.enter_async_context(client))
        task = await _run_task(api, prompt, console)
        for clip in task["clips"]:
            await _download(api, task["id"], clip, console)
        console.print("Done.", style="green")
        console.print("REST calls made:")
        for call, times in api.calls.items():
            console.print(f"  {call}" + (f" (×{times})" if times > 1 else ""), markup=False)


class _ApiClient:
    """A client of the REST API that counts its calls by method, path and status code."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.calls: dict[str, int] = {}

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request. Raises DemoFailed for an error response."""
        response = await self._client.request(method, path, **options)
        call = f"{method} {httpx.URL(path).copy_with(query=None)} → {response.status_code}"
        self.calls[call] = self.calls.get(call, 0) + 1
        if response.is_error:
            raise DemoFailed(f"{call}: {response.text}")
        return response


async def _run_task(api: _ApiClient, prompt: str, console: Console) -> dict[str, Any]:
    """Create a task and poll it, printing its progress, until it has succeeded and every clip is archived."""
    started_at = time.monotonic()
    task: dict[str, Any] = (await api.request("POST", "/v1/tasks", json={"prompt": prompt})).json()
    console.print(f"Task {task['id']}: {task['prompt']}", markup=False)
    printed = None
    while True:
        elapsed, progress = time.monotonic() - started_at, _progress(task)
        if progress != printed:
            console.print(f"  {elapsed:6.2f} s  {progress}")
            printed = progress
        if task["status"] in FINAL and all(clip["archived_at"] for clip in task["clips"]):
            break
        if elapsed > TIMEOUT.total_seconds():
            raise DemoFailed(f"after {elapsed:.0f} s the task is {task['status']} and not all of its audio is archived")
        await asyncio.sleep(POLL_INTERVAL.total_seconds())
        task = (await api.request("GET", f"/v1/tasks/{task['id']}")).json()
    if task["status"] != "succeeded":
        raise DemoFailed(f"the task ended as {task['status']}: {task['error']}")
    return task


def _progress(task: Mapping[str, Any]) -> str:
    """The status of a task, and how many of its clips are archived."""
    clips: list[Mapping[str, Any]] = task["clips"]
    if not clips:
        return str(task["status"])
    archived = sum(clip["archived_at"] is not None for clip in clips)
    return f"{task['status']}, {len(clips)} clip{'s' if len(clips) > 1 else ''}, {archived} archived"


async def _download(api: _ApiClient, task_id: str, clip: Mapping[str, Any], console: Console) -> None:
    """Download the archived audio of one clip and check that it plays."""
    response = await api.request("GET", clip["audio_url"])
    path = Path.cwd() / "var/demo" / task_id / f"{clip['index']}{SUFFIXES.get(clip['content_type'], '.bin')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(response.content)
    duration = measure(path)
    if duration is None:
        raise DemoFailed(f"{path} is not audio")
    console.print(f"Clip {clip['index']}: {duration:.1f} s, {len(response.content):,} bytes, checked to be audio")
    console.print(str(path), markup=False)


@asynccontextmanager
async def _sandbox(folder: Path) -> AsyncIterator[str]:
    """Run a sandbox inside the block; yields its URL."""
    async with _process(folder, {}, "sandbox", "--port", "0") as process:
        yield await _read_url(process, "sandbox")


@asynccontextmanager
async def _service(folder: Path, upstream_url: str, key: str) -> AsyncIterator[str]:
    """Run a service inside the block; yields its URL once it is ready."""
    # The public URL is a setting, so the port must be chosen before the service listens.
    port = _free_port()
    settings = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/soundpost.db",
        "UPSTREAM_URL": upstream_url,
        "UPSTREAM_API_KEY": "sandbox",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "API_KEYS": f"demo:{key}",
        # The sandbox serves its audio from a loopback address, which the egress guard refuses by default.
        "EGRESS_ALLOW": "127.0.0.0/8",
        "LOG_LEVEL": "warning",
    }
    async with _process(folder, settings, "serve", "--port", str(port)) as process:
        url = await _read_url(process, "serve")
        await _wait_until_ready(url, process)
        yield url


@asynccontextmanager
async def _process(folder: Path, settings: Mapping[str, str], *command: str) -> AsyncIterator[Process]:
    """Run a `soundpost` command with these settings, and no others, inside the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {f"{PREFIX}{name}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.cli",
        *command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C on a terminal signals the whole process group. In a session of their own the processes end in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _stop(process)


async def _read_url(process: Process, name: str) -> str:
    """The URL that a command prints once it listens."""
    if process.stdout is None:
        raise DemoFailed(f"soundpost {name} has no output to read its URL from")
    line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT.total_seconds())
    if b"listening on " not in line:
        raise DemoFailed(f"soundpost {name} did not start (exit code {await process.wait()}); see its message above")
    return line.decode().rpartition(" ")[2].strip()


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT.total_seconds())
    except TimeoutError:
        process.kill()
        await process.wait()


async def _wait_until_ready(url: str, process: Process) -> None:
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                if (await client.get("/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(POLL_INTERVAL.total_seconds())
    raise DemoFailed("the service did not become ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
