"""Several server processes count as one, whichever of them is asked, and whatever becomes of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import httpx

from app.observability.multiprocess import SHARED_MEMORY, shared_folder
from tests.support.api import client_of, create_tasks
from tests.support.processes import Process, Processes
from tests.support.scrapes import Scrape, scrape
from tests.support.settings import UNREACHABLE
from tests.support.wait import eventually

PREFIX = "soundpost-metrics-"


async def test_processes_count_as_one_although_one_is_killed(migrated_sqlite: Path, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(url, sandbox.url, "--workers", "2")
        killed = _servers(service)[0]
        await _order(service.url, 6)
        counted = [await _scraped(service.url) for _ in range(6)]
        os.kill(killed, signal.SIGKILL)
        # Every scrape of these is of the other one, or of the one that takes the place of the killed one.
        least = []
        while killed in _servers(service) or len(_servers(service)) < 2:
            least.append((await _scraped(service.url))("soundpost_tasks_created_total"))
            await asyncio.sleep(0.1)
        await eventually(partial(_is_of_two, service.url))
        await _order(service.url, 4)
        last = [await _scraped(service.url) for _ in range(6)]
        made = {each for each in _folders() if _is_held_by(service, each)}
        assert await service.stop() == 0

    assert {seen("soundpost_tasks_created_total") for seen in counted} == {6}
    assert all(value == 6 for value in least)
    assert {seen("soundpost_tasks_created_total") for seen in last} == {10}
    assert last[0]("soundpost_database_connections_max", pool="main") == 2
    assert last[0]("soundpost_database_up") == 1
    assert (len(made), _folders() & made) == (1, set())


async def test_process_is_replaced_although_the_folder_was_removed(migrated_sqlite: Path, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    with Processes(tmp_path) as processes:
        service = await processes.serve(url, UNREACHABLE, "--no-loops", "--workers", "2")
        [folder] = {each for each in _folders() if _is_held_by(service, each)}
        shutil.rmtree(folder)
        for pid in _servers(service):
            os.kill(pid, signal.SIGKILL)
        await eventually(partial(_is_scraped, service.url), within=30)
        assert await service.stop() == 0

    assert not folder.exists()


def test_folder_of_a_killed_service_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left, being_made = tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}being_made"
    for folder in (left, being_made):
        folder.mkdir()
    (left / "owner.lock").touch()
    os.utime(left, (0, 0))

    with shared_folder(tmp_path) as used:
        os.utime(used, (0, 0))
        with shared_folder(tmp_path) as other:
            folders = set(tmp_path.iterdir())

    assert folders == {Path(used), Path(other), being_made}
    assert set(tmp_path.iterdir()) == {being_made}


async def _is_of_two(url: str) -> bool:
    return (await _scraped(url))("soundpost_database_connections_max", pool="main") == 2


async def _order(url: str, tasks: int) -> None:
    # Each over a connection of its own, so that the processes share them.
    for _ in range(tasks):
        async with client_of(url) as client:
            await create_tasks(client, 1)


async def _scraped(url: str) -> Scrape:
    async with client_of(url, None) as client:
        return await scrape(client)


async def _is_scraped(url: str) -> bool:
    try:
        return (await _scraped(url))("soundpost_database_up") == 1
    except httpx.HTTPError:
        return False


def _is_held_by(service: Process, folder: Path) -> bool:
    held = Path(f"/proc/{service.pid}/fd").iterdir()
    return any(os.readlink(each).startswith(str(folder)) for each in held if each.is_symlink())


def _servers(service: Process) -> list[int]:
    """Without multiprocessing's own helper."""
    return [pid for pid in service.children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def _folders() -> set[Path]:
    return set(SHARED_MEMORY.glob(f"{PREFIX}*"))
