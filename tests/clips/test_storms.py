"""Copies survive kills, an unusable storage and the end of the upstream; many at once take no more memory."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app.database.engine import Database
from app.models import Clip
from tests.support.api import Json, client_of, create_task
from tests.support.processes import Processes
from tests.support.sandbox import journal, serve_sandbox
from tests.support.service import is_archived, serve_with_sandbox
from tests.support.wait import eventually

MANY_TASKS = 100
LARGE_SOUND = 1_000_000


@pytest.mark.slow
async def test_killed_download_is_made_again(database_url: str, tmp_path: Path) -> None:
    settings = storing_in(tmp_path)
    async with serve_sandbox() as upstream:
        with Processes(tmp_path, **settings) as processes:
            service = await processes.serve(database_url, upstream)
            async with client_of(service.url) as client:
                task_id = (await create_task(client, "rain [fault:audio-slow=3]"))["id"]
                await eventually(lambda: is_downloading(upstream), 20)
                service.kill()
            leftovers = list((tmp_path / "audio").rglob("*.wav"))
            service = await processes.serve(database_url, upstream)
            async with client_of(service.url) as client:
                task = await until_archived(client, task_id, 60)
                for clip in task["clips"]:
                    content = (await client.get(f"/v1/tasks/{task_id}/clips/{clip['index']}/audio")).content
                    assert hashlib.sha256(content).hexdigest() == clip["sha256"]

    assert leftovers == []


async def test_unusable_storage_fails_readiness_and_is_used_again_afterwards(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        (tmp_path / "audio").rmdir() if (tmp_path / "audio").exists() else None
        (tmp_path / "audio").write_text("a file where the folder should be")
        task_id = await service.create_task()
        await service.until(task_id, lambda task: task["status"] == "succeeded")
        refused = await service.client.get("/readyz")
        alive = await service.client.get("/livez")
        (tmp_path / "audio").unlink()
        task = await service.until(task_id, is_archived)
        ready = await service.client.get("/readyz")

    assert (refused.status_code, refused.json()["checks"]["storage"]["status"]) == (503, "down")
    assert (alive.status_code, ready.status_code) == (200, 200)
    assert len(task["clips"]) == 2


async def test_copy_is_served_when_the_upstream_is_gone(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, **storing_in(tmp_path)) as processes:
        async with serve_sandbox() as upstream:
            service = await processes.serve(database_url, upstream)
            async with client_of(service.url) as client:
                task_id = (await create_task(client, "rain"))["id"]
                task = await until_archived(client, task_id, 30)
                original = (await client.get(task["clips"][0]["upstream_audio_url"])).content
            await service.stop()
        async with client_of((await processes.serve(database_url, upstream)).url) as client:
            copy = (await client.get(f"/v1/tasks/{task_id}/clips/0/audio")).content

    assert copy == original


@pytest.mark.slow
async def test_many_clips_at_once_take_no_more_memory_than_a_few(
    migrated_sqlite: Path, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    database = Database(database_url)
    prompts = [f"rain {number} [fault:audio-too-large={LARGE_SOUND / 1e6}]" for number in range(MANY_TASKS)]
    with Processes(tmp_path, **storing_in(tmp_path), upstream_rate="1000/1") as processes:
        sandbox = await processes.sandbox(rate=100_000, credits=1e6)
        service = await processes.serve(database_url, sandbox.url)
        idle = service.memory_kib("VmHWM") // 1024
        async with client_of(service.url) as client:
            for prompt in prompts:
                await create_task(client, prompt)
            await eventually(lambda: are_all_archived(database), 120)
        peak = service.memory_kib("VmHWM") // 1024
    await database.close()

    measured(f"{2 * MANY_TASKS} clips of {LARGE_SOUND / 1e6:g} MB at once: a peak of {peak} MB, {idle} MB of it idle")
    assert peak - idle < 100
    assert len(list((tmp_path / "audio").rglob("*.wav"))) == 2 * MANY_TASKS


def storing_in(folder: Path) -> dict[str, str]:
    """Settings of a service that stores audio in a folder and needs no callbacks."""
    polls = {"poll_after": "0.5", "poll_every": "0.5"}
    return {"storage_url": f"file:{folder}/audio", "log_level": "error", **polls}


async def is_downloading(upstream: str) -> bool:
    return any(entry["path"].startswith("/audio/") for entry in await journal(upstream, kind="request"))


async def are_all_archived(database: Database) -> bool:
    async with database.reads() as session:
        count = await session.scalar(select(func.count()).where(Clip.archived_at.isnot(None)))
    return count == 2 * MANY_TASKS


async def until_archived(client: httpx.AsyncClient, task_id: str, within: float) -> Json:
    task: Json = {}

    async def has_come() -> bool:
        task.update((await client.get(f"/v1/tasks/{task_id}")).json())
        return is_archived(task)

    await eventually(has_come, within)
    return task
