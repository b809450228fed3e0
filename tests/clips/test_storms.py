"""Copies survive what happens to the process, to the storage, and to the upstream; many at once take no more memory."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from app.database.engine import Database
from app.models import Clip
from app.sandbox import SandboxOptions, SandboxServer
from tests.clips.running import KEY, eventually, is_archived, running_service, serving

MANY_TASKS = 100
LARGE_SOUND = 1_000_000


async def test_download_that_was_killed_is_made_again(database_url: str, tmp_path: Path) -> None:
    async with sandboxed() as upstream, caller() as client:
        async with service_process(database_url, upstream, tmp_path) as (process, url):
            answer = await client.post(f"{url}/v1/tasks", json={"prompt": "rain [fault:audio-slow=3]"})
            task_url = f"/v1/tasks/{answer.json()['id']}"
            await eventually(lambda: is_downloading(client, upstream), 20)
            process.kill()
            await process.wait()
        leftovers = list((tmp_path / "audio").rglob("*.wav"))
        async with service_process(database_url, upstream, tmp_path) as (_, url):
            task = await until_archived(client, url + task_url, 60)
            for clip in task["clips"]:
                content = (await client.get(url + f"{task_url}/clips/{clip['index']}/audio")).content
                assert hashlib.sha256(content).hexdigest() == clip["sha256"]

    assert leftovers == []


async def test_storage_that_refuses_is_told_and_then_used_again(database_url: str, tmp_path: Path) -> None:
    async with running_service(database_url, tmp_path) as service:
        (tmp_path / "audio").rmdir() if (tmp_path / "audio").exists() else None
        (tmp_path / "audio").write_text("a file where the folder should be")
        task_id = await service.order()
        await service.until(task_id, lambda task: task["status"] == "succeeded")
        refused = await service.client.get("/readyz")
        alive = await service.client.get("/livez")
        (tmp_path / "audio").unlink()
        task = await service.until(task_id, is_archived)
        ready = await service.client.get("/readyz")

    assert (refused.status_code, refused.json()["checks"]["storage"]["status"]) == (503, "down")
    assert (alive.status_code, ready.status_code) == (200, 200)
    assert len(task["clips"]) == 2


async def test_copy_is_the_same_when_the_upstream_is_gone(database_url: str, tmp_path: Path) -> None:
    async with caller() as client:
        async with sandboxed() as upstream, service_process(database_url, upstream, tmp_path) as (_, url):
            answer = await client.post(f"{url}/v1/tasks", json={"prompt": "rain"})
            task = await until_archived(client, f"{url}/v1/tasks/{answer.json()['id']}", 30)
            original = (await client.get(task["clips"][0]["upstream_audio_url"])).content
        async with service_process(database_url, upstream, tmp_path) as (_, url):
            kept = (await client.get(f"{url}/v1/tasks/{task['id']}/clips/0/audio")).content

    assert kept == original


async def test_many_clips_at_once_take_no_more_memory_than_a_few(
    migrated_sqlite: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    file = shutil.copyfile(migrated_sqlite, tmp_path / "soundpost.db")
    database_url = f"sqlite+aiosqlite:///{file}"
    database = Database(database_url)
    prompts = [f"rain {number} [fault:audio-too-large={LARGE_SOUND / 1e6}]" for number in range(MANY_TASKS)]
    try:
        async with (
            sandbox_process() as upstream,
            caller() as client,
            service_process(database_url, upstream, tmp_path, UPSTREAM_RATE="1000/1") as (process, url),
        ):
            idle = peak_of(process)
            for prompt in prompts:
                (await client.post(f"{url}/v1/tasks", json={"prompt": prompt})).raise_for_status()
            await eventually(lambda: are_all_archived(database), 120)
            peak = peak_of(process)
    finally:
        await database.close()

    measured(f"{2 * MANY_TASKS} clips of {LARGE_SOUND / 1e6:g} MB at once: a peak of {peak} MB, {idle} MB of it idle")
    assert peak - idle < 100
    assert len(list((tmp_path / "audio").rglob("*.wav"))) == 2 * MANY_TASKS


@asynccontextmanager
async def sandboxed() -> AsyncIterator[str]:
    options = SandboxOptions(delay=0.1, rate=1000)
    async with serving(SandboxServer(options, "127.0.0.1", 0)) as url:
        yield url


@asynccontextmanager
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=20) as client:
        yield client


@asynccontextmanager
async def sandbox_process() -> AsyncIterator[str]:
    """A sandbox that does not share our processor time, and so no event loop, with the test."""
    code = (
        "from app.sandbox import SandboxOptions, run_sandbox;"
        "run_sandbox(SandboxOptions(delay=0.1, rate=100000, credits=1e6))"
    )
    async with process_of({}, "-c", code) as process:
        yield await address_of(process)


@asynccontextmanager
async def service_process(
    database_url: str, upstream: str, folder: Path, **settings: str
) -> AsyncIterator[tuple[Process, str]]:
    given = {
        "DATABASE_URL": database_url,
        "UPSTREAM_URL": upstream,
        "UPSTREAM_API_KEY": "sandbox",
        "SECRET_KEYS": "a-secret-key-of-the-tests-alone",
        "API_KEYS": f"tests:{KEY}",
        "EGRESS_ALLOW": "127.0.0.0/8",
        "STORAGE_URL": f"file:{folder}/audio",
        "POLL_AFTER": "0.5",
        "POLL_EVERY": "0.5",
        "LOG_LEVEL": "error",
        **settings,
    }
    async with process_of(given, "-m", "app.cli", "serve", "--port", "0") as process:
        yield process, await address_of(process)


@asynccontextmanager
async def process_of(settings: dict[str, str], *arguments: str) -> AsyncIterator[Process]:
    ours = {f"SOUNDPOST_{name}": value for name, value in settings.items()}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **ours}
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def address_of(process: Process) -> str:
    assert process.stdout
    return (await process.stdout.readline()).decode().split()[-1]


async def is_downloading(client: httpx.AsyncClient, upstream: str) -> bool:
    journal = json.loads((await client.get(f"{upstream}/journal")).content)
    return any(entry.get("path", "").startswith("/audio/") for entry in journal)


async def are_all_archived(database: Database) -> bool:
    async with database.reads() as session:
        count = await session.scalar(select(func.count()).where(Clip.archived_at.isnot(None)))
    return count == 2 * MANY_TASKS


async def until_archived(client: httpx.AsyncClient, task_url: str, within: float) -> dict[str, Any]:
    task: dict[str, Any] = {}

    async def has_come() -> bool:
        task.update((await client.get(task_url)).json())
        return is_archived(task)

    await eventually(has_come, within)
    return task


def peak_of(process: Process) -> int:
    """The most memory that a process has had, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
