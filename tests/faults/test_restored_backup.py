"""After a disaster the backup is restored by the recipe, and nothing that was sent since is sent and paid again."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

from app.config import Settings
from tests.cli.test_backup import POSTGRES_PROGRAMS
from tests.support.api import client_of, create_task, until_final, until_status
from tests.support.processes import Processes, free_port
from tests.support.sandbox import submits_at
from tests.support.settings import ROOT, SECRET_KEY
from tests.support.wait import eventually

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
SECTION = DOCUMENT.split("## Backup and restore")[1]
# Back up and restore SQLite; back up and restore PostgreSQL, in one; after the restore.
SQLITE_BACKUP, SQLITE_RESTORE, POSTGRES, AFTER = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
SILENT = "rain [fault: drop-callbacks]"


class Recipes:
    """The commands of docs/operations.md, on this database and in this folder."""

    def __init__(self, database_url: str, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        (folder / "backup").mkdir()
        # The commands' names are those of an installed service.
        (folder / "bin").mkdir()
        command = folder / "bin" / "soundpost"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
        command.chmod(0o755)
        if shutil.which("rsync") is None:
            (folder / "bin" / "rsync").write_text('#!/bin/sh\nmkdir -p "$3" && cp -a "$2." "$3"\n')
            (folder / "bin" / "rsync").chmod(0o755)

    def run(self, recipe: str) -> str:
        """Run commands as a shell does; return what they print."""
        script = recipe.replace("postgresql://user@host/soundpost", self._url).replace(
            "/backup", f"{self._folder}/backup"
        )
        path = f"{self._folder}/bin:{POSTGRES_PROGRAMS}:{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-ec", script],
            env={**self._environment, "PATH": path},
            cwd=self._folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.slow
async def test_restored_backup_pays_for_nothing_twice(
    empty_database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    is_sqlite = empty_database_url.startswith("sqlite")
    # The recipe is for the default paths.
    url = "sqlite+aiosqlite:///var/soundpost.db" if is_sqlite else empty_database_url
    dump, restore = re.findall(r"^pg_(?:dump|restore) .*", POSTGRES, re.MULTILINE)
    backup, recover = (SQLITE_BACKUP, SQLITE_RESTORE) if is_sqlite else (dump, f"{restore}\n{AFTER}")
    port = free_port()
    settings = {"submit_deadline": "12", "poll_after": "60", "upstream_rate": "500/1"}
    # On SQLite the secret key is the one beside the database.
    secret_keys = None if is_sqlite else SECRET_KEY
    with Processes(tmp_path, **settings, secret_keys=secret_keys) as processes:
        sandbox = await processes.sandbox("--callback-retries", "1,1,1,1,1,1,1,1", rate=1000)
        recipes = Recipes(url, tmp_path, processes.environment(database_url=url))
        if not is_sqlite:
            recipes.run("soundpost migrate")
        service = await processes.serve(url, sandbox.url, port=port)
        async with client_of(service.url) as client:
            done = await until_final(client, (await create_task(client))["id"])
            await eventually(lambda: any((tmp_path / "var" / "audio").rglob("*")))
            assert await service.stop() == 0
            service = await processes.serve(url, sandbox.url, "--no-loops", port=port)
            lost = [(await create_task(client, SILENT))["id"] for _ in range(3)]
            late = [(await create_task(client))["id"] for _ in range(3)]
            recipes.run(backup)

            # What the backup shows as queued is sent; and then comes the disaster.
            unknown = (await create_task(client))["id"]
            service.kill()
            await control_delay(sandbox.url, 4)
            service = await processes.serve(url, sandbox.url, port=port)
            for task_id in (*lost, *late, unknown):
                await until_status(client, task_id, "generating", "succeeded")
            service.kill()
            if is_sqlite:
                shutil.rmtree(tmp_path / "var" / "audio")

            said = recipes.run(recover)
            service = await processes.serve(url, sandbox.url, port=port)
            kept = (await client.get(f"/v1/tasks/{done['id']}")).json()
            audio = await client.get(f"/v1/tasks/{done['id']}/clips/0/audio")
            adopted = [await until_final(client, task_id) for task_id in late]
            failed = [await until_final(client, task_id) for task_id in lost]
            gone = await client.get(f"/v1/tasks/{unknown}")
            new = await until_final(client, (await create_task(client))["id"])
            sent = Counter(submit["caller_task_id"] for submit in await submits_at(sandbox.url))

    measured(f"restored {make_url(url).get_backend_name()}: {len(sent)} tasks, {sum(sent.values())} POSTs")
    assert said.splitlines()[-1].startswith("6 queued tasks are unconfirmed now")
    assert (kept["status"], audio.status_code) == ("succeeded", 200)
    assert [(task["status"], task["resolved_by"]) for task in adopted] == [("succeeded", "adoption")] * 3
    assert [(task["error"]["code"], task["charge"]) for task in failed] == [("outcome_unknown", "possible")] * 3
    assert gone.status_code == 404
    assert new["status"] == "succeeded"
    # One of each: the first, the six of the copy, the one that it does not know, and the new one.
    assert Counter(sent.values()) == {1: 9}


async def test_queue_is_not_touched_without_being_told_that_nothing_runs(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        service = await processes.serve(database_url, "http://127.0.0.1:9", "--no-loops")
        async with client_of(service.url) as client:
            task = await create_task(client)
            refused = await processes.run("after-restore", database_url=database_url)
            status = (await client.get(f"/v1/tasks/{task['id']}")).json()["status"]

    assert (refused.code, status) == (2, "queued")
    assert "--yes" in refused.stderr


def test_litestream_copies_the_database_of_the_image_and_is_given_no_credentials() -> None:
    text = (ROOT / "deploy" / "litestream" / "litestream.yml").read_text()
    [database] = yaml.safe_load(text)["dbs"]
    default = make_url(Settings.model_fields["database_url"].default).database

    assert database["path"] == f"/app/{default}"
    assert database["replica"]["url"].startswith("s3://")
    assert re.findall(r"(?i)access-key|secret-access", text) == []
    assert f"-config deploy/litestream/litestream.yml {database['path']}" in SECTION


async def control_delay(sandbox_url: str, seconds: float) -> None:
    async with client_of(sandbox_url, None) as client:
        (await client.post("/control", json={"delay": seconds})).raise_for_status()
