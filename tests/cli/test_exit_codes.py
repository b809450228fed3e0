"""What each command ends with where it cannot do its work, and where its output is cut off."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from app.cli.main import main
from app.database.engine import Database
from app.tasks.repository import lock_task
from tests.support.processes import Processes
from tests.support.rows import add_key, add_task, stored
from tests.support.settings import ROOT, SECRET_KEY, UNREACHABLE

ID = "019a6c1e7b7f7d0e8c5a2f4b6d8e0a1c"
# Every command that works with the database, with words that it takes.
COMMANDS = [
    ["tasks", "list"],
    ["tasks", "show", ID],
    ["tasks", "resolve", ID, "--status", "failed"],
    ["tasks", "retry", ID],
    ["tasks", "submit", "rain", "--as", "tests"],
    ["callbacks", "replay"],
    ["deliveries", "list"],
    ["deliveries", "resend", ID],
    ["keys", "create", "tests"],
    ["keys", "set", ID, "--weight", "2"],
    ["keys", "list"],
    ["keys", "rotate", ID],
    ["keys", "revoke", ID],
    ["audit"],
    ["prune"],
    ["after-restore", "--yes"],
    ["migrate"],
]
NO_DATABASE = [["demo"], ["serve"], ["worker"], ["sandbox"], ["doctor"], ["backup"]]
name_of = " ".join


@pytest.mark.parametrize("words", COMMANDS, ids=name_of)
def test_database_that_does_not_answer_is_a_sentence_and_exit_code_1(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDPOST_SECRET_KEYS", SECRET_KEY)
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", "postgresql://soundpost:hidden@127.0.0.1:9/soundpost")

    ended = CliRunner().invoke(main, words)

    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "check SOUNDPOST_DATABASE_URL" in ended.stderr
    assert "hidden" not in ended.stderr


@pytest.mark.parametrize("words", [*COMMANDS, *NO_DATABASE], ids=name_of)
def test_what_cannot_be_understood_is_exit_code_2(words: list[str]) -> None:
    ended = CliRunner().invoke(main, [*words, "--no-such-option"])

    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "No such option" in ended.stderr


def test_no_command_is_left_out() -> None:
    tried = {name for words in (*COMMANDS, *NO_DATABASE) for name in (name_of(words[:2]), words[0])}

    assert {*_commands("", typer.main.get_command(main))} - tried == set()


def test_exit_codes_of_the_help_are_those_of_the_document() -> None:
    codes = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    help_of_submit = CliRunner().invoke(main, ["tasks", "submit", "--help"]).stdout

    named = " ".join(help_of_submit.partition("Exit codes:")[2].split())
    assert set(re.findall(r"(?:^|; |or )(\d+) ", named)) == codes == {"0", "1", "2", "3", "4", "130"}


def test_list_whose_reader_has_gone_ends_in_silence(migrated_sqlite: Path, tmp_path: Path) -> None:
    (tmp_path / "soundpost.db").write_bytes(migrated_sqlite.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    stored(url, _two_tasks)
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, database_url=url).environment()
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["tasks", "list"], ["tasks", "submit", "rain", "--wait", "0"]):
        command = [sys.executable, "-m", "app.cli", *words]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (1, "")
    os.close(writer)


def test_prune_counts_as_json(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDPOST_SECRET_KEYS", SECRET_KEY)
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", database_url)

    counts = json.loads(CliRunner().invoke(main, ["prune", "--dry-run", "--json"]).stdout)

    kinds = "tasks", "events", "callbacks", "deliveries", "audio", "idempotency_keys", "audit_entries"
    assert counts == dict.fromkeys(kinds, 0)


# SQLite waits for its busy timeout.
@pytest.mark.parametrize("database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True)
async def test_locked_row_is_a_sentence(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    task = await add_task(database, await add_key(database))
    with Processes(tmp_path, database_url=database_url, database_lock_timeout="0.2") as processes:
        async with database.writes.begin() as session:
            await lock_task(session, task.id)
            locked = await processes.run("tasks", "resolve", task.id, "--status", "failed")
            listed = await processes.run("tasks", "list")
        done = await processes.run("tasks", "resolve", task.id, "--status", "failed")
    await database.close()

    assert (locked.code, locked.stdout) == (1, "")
    assert locked.stderr.startswith("Others have locked in the database what this needs, and not released it in time.")
    # Reads wait for nobody.
    assert (listed.code, listed.stdout.split()[0]) == (0, task.id)
    assert (done.code, done.stdout) == (0, f"{task.id} is failed.\n")


async def _two_tasks(database: Database) -> None:
    key_id = await add_key(database)
    for _ in range(2):
        await add_task(database, key_id)


def _commands(name: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    for word, child in children.items():
        yield from _commands(f"{name} {word}".strip(), child)
    if not children:
        yield name
