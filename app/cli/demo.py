"""The main job with nothing set up: real processes, one task, from its order to files that play."""

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
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from app.clips.media_types import SUFFIXES, measure
from app.config import PREFIX

TIMEOUT = 60.0
FINAL = frozenset({"succeeded", "failed", "canceled"})


class DemoFailed(Exception):
    """The demo did not get its sound; the message says why."""


def run(prompt: str) -> int:
    """Run the demo and return the exit code: 0 only if every file was checked to be audio."""
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
        # Without a terminal the end is asked for so, and what was started here must end too.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soundpost-demo-")))
        console.print("Starting a sandbox upstream and the service …")
        upstream_url = await stack.enter_async_context(_sandbox(folder))
        key = secrets.token_urlsafe(24)
        url = await stack.enter_async_context(_service(folder, upstream_url, key))
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=TIMEOUT)
        http = _Http(await stack.enter_async_context(client), console)
        task = await _order(http, prompt, console)
        for clip in task["clips"]:
            await _keep(http, task["id"], clip, console)
        console.print("Done.", style="green")
        http.show_calls()


class _Http:
    """Makes REST calls and remembers them."""

    def __init__(self, client: httpx.AsyncClient, console: Console) -> None:
        self._client, self._console = client, console
        self._calls: dict[str, int] = {}

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = await self._client.request(method, path, **options)
        call = f"{method} {httpx.URL(path).copy_with(query=None)} → {answer.status_code}"
        self._calls[call] = self._calls.get(call, 0) + 1
        if answer.is_error:
            raise DemoFailed(f"{call}: {answer.text}")
        return answer

    def show_calls(self) -> None:
        self._console.print("REST calls made:")
        for call, times in self._calls.items():
            self._console.print(f"  {call}" + (f" (×{times})" if times > 1 else ""), markup=False)


async def _order(http: _Http, prompt: str, console: Console) -> dict[str, Any]:
    """Order a sound and follow its states until the last one."""
    began = time.monotonic()
    task: dict[str, Any] = (await http.call("POST", "/v1/tasks", json={"prompt": prompt})).json()
    console.print(f"Task {task['id']}: {task['prompt']}", markup=False)
    seen = None
    while True:
        archived = sum(clip["archived_at"] is not None for clip in task["clips"])
        now_at = task["status"], len(task["clips"]), archived
        if now_at != seen:
            clips = f", {now_at[1]} clip{'s' if now_at[1] > 1 else ''}, {archived} kept" if now_at[1] else ""
            console.print(f"  {time.monotonic() - began:6.2f} s  {now_at[0]}{clips}")
            seen = now_at
        if task["status"] in FINAL and all(clip["archived_at"] for clip in task["clips"]):
            break
        if time.monotonic() - began > TIMEOUT:
            raise DemoFailed(f"the task is still {task['status']} after {TIMEOUT:.0f} s, or its audio not kept")
        await asyncio.sleep(0.05)
        task = (await http.call("GET", f"/v1/tasks/{task['id']}")).json()
    if task["status"] != "succeeded":
        raise DemoFailed(f"the task ended as {task['status']}: {task['error']}")
    return task


async def _keep(http: _Http, task_id: str, clip: Mapping[str, Any], console: Console) -> None:
    """Download our copy of one clip and check that it can be played."""
    answer = await http.call("GET", clip["audio_url"])
    path = Path.cwd() / "var/demo" / task_id / f"{clip['index']}{SUFFIXES.get(clip['content_type'], '.bin')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(answer.content)
    duration = measure(path)
    if duration is None:
        raise DemoFailed(f"{path} is not audio")
    console.print(f"Clip {clip['index']}: {duration:.1f} s, {len(answer.content):,} bytes, checked to be audio")
    console.print(str(path), markup=False)


@asynccontextmanager
async def _sandbox(folder: Path) -> AsyncIterator[str]:
    async with _process(folder, {}, "sandbox", "--port", "0") as process:
        yield await _address(process, "sandbox")


@asynccontextmanager
async def _service(folder: Path, upstream_url: str, key: str) -> AsyncIterator[str]:
    # The public URL must be known before the service listens, so its port is chosen first.
    port = _free_port()
    settings = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/soundpost.db",
        "UPSTREAM_URL": upstream_url,
        "UPSTREAM_API_KEY": "sandbox",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "API_KEYS": f"demo:{key}",
        # The sandbox's files are on this machine, which audio is otherwise never fetched from.
        "EGRESS_ALLOW": "127.0.0.0/8",
        "LOG_LEVEL": "warning",
    }
    async with _process(folder, settings, "serve", "--port", str(port)) as process:
        url = await _address(process, "serve")
        await _until_ready(url, process)
        yield url


@asynccontextmanager
async def _process(folder: Path, settings: Mapping[str, str], *command: str) -> AsyncIterator[Process]:
    """Run one of our commands until the block ends."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    chosen = {f"{PREFIX}{name}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.cli",
        *command,
        cwd=folder,
        env={**surroundings, "PYTHONPATH": str(Path(__file__).parents[2]), **chosen},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C on a terminal reaches the whole group; we end what we started ourselves, in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _address(process: Process, name: str) -> str:
    if process.stdout is None:
        raise DemoFailed(f"soundpost {name} has no output to read its address from")
    line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
    if b"listening on " not in line:
        raise DemoFailed(f"soundpost {name} did not start (exit code {await process.wait()}); see its message above")
    return line.decode().rpartition(" ")[2].strip()


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), 15)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _until_ready(url: str, process: Process) -> None:
    deadline = time.monotonic() + TIMEOUT
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                if (await client.get("/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise DemoFailed("the service did not become ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
