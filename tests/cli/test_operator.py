"""What an operator finds out and does by the command line."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli.main import main
from app.database.engine import Database
from app.enums import CallbackOutcome, ErrorCode, ResolvedBy, TaskStatus
from app.models import ApiKey, Callback, Clip, Task
from app.tasks.repository import lock_task
from app.tasks.resolution import CannotResolve, resolve
from tests.support.api import client_of, create_task
from tests.support.clock import MORNING
from tests.support.processes import Processes, free_port
from tests.support.rows import add_key, add_task, event_types, lifecycle_of, reread
from tests.support.settings import SECRET_KEY, UPSTREAM_KEY
from tests.support.wait import eventually

S = TaskStatus
LIVE = (S.queued, S.submitting, S.unconfirmed, S.generating)
COMPLETE = json.dumps(
    {
        "code": 200,
        "data": {
            "callbackType": "complete",
            "task_id": "up-1",
            "data": [{"id": "clip-1", "audio_url": "https://cdn.example/1.mp3"}],
        },
    }
).encode()

# From where an operator may bring a task into a state that its own steps allow.
ALLOWED: dict[S, set[S]] = {
    S.generating: {S.queued, S.submitting, S.unconfirmed, S.failed},
    S.succeeded: {S.generating},
    S.failed: set(LIVE),
    S.canceled: set(LIVE),
}


@pytest.mark.parametrize("wanted", list(S))
@pytest.mark.parametrize("current", list(S))
async def test_operator_takes_the_steps_of_the_table(
    database: Database, current: TaskStatus, wanted: TaskStatus
) -> None:
    task = await _task(database, current, error_code=ErrorCode.outcome_unknown if current is S.failed else None)

    is_done = await _resolve(database, task, wanted, "up-1")

    after = await reread(database, task.id)
    assert is_done == (current in ALLOWED.get(wanted, set()))
    assert after.status is (wanted if is_done else current)
    if is_done and wanted is S.generating:
        assert (after.upstream_task_id, after.due_at is not None) == ("up-1", True)
    elif is_done:
        assert after.resolved_by is ResolvedBy.operator


async def test_operator_is_told_what_is_missing(database: Database) -> None:
    lost, silent = await _task(database, S.unconfirmed), await _task(database, S.generating, clips=())

    with pytest.raises(CannotResolve, match="unconfirmed cannot be made generating without --upstream-task-id"):
        await _try(database, lost, S.generating, None)
    with pytest.raises(CannotResolve, match="generating cannot be made succeeded without clips"):
        await _try(database, silent, S.succeeded, None)
    with pytest.raises(CannotResolve, match=r"unconfirmed cannot be made succeeded\."):
        await _try(database, lost, S.succeeded, None)


def test_task_is_found_shown_and_resolved(command: Callable[..., Any], database_url: str) -> None:
    task_id = asyncio.run(_stored(database_url, S.unconfirmed))

    listed = json.loads(command("tasks", "list", "--status", "unconfirmed", "--json").stdout)
    resolved = command("tasks", "resolve", task_id, "--status", "failed")
    again = command("tasks", "resolve", task_id, "--status", "canceled")
    shown = json.loads(command("tasks", "show", task_id).stdout)
    unknown = [command("tasks", "show", "x"), command("tasks", "resolve", "x", "--status", "failed")]

    assert [task["id"] for task in listed] == [task_id]
    assert (resolved.exit_code, resolved.stdout) == (0, f"{task_id} is failed.\n")
    assert (again.exit_code, again.stderr) == (1, "A task that is failed cannot be made canceled.\n")
    assert (shown["resolved_by"], shown["error"]["code"], shown["posts"]) == ("operator", "outcome_unknown", 0)
    assert [event["type"] for event in shown["events"]] == ["task.created", "task.failed"]
    assert {(each.exit_code, each.stderr) for each in unknown} == {
        (1, "No task has this id; `soundpost tasks list` shows them.\n")
    }


@pytest.mark.parametrize("which", ["--task", "--since", "--since in another zone", "all"])
def test_kept_callbacks_are_read_again(command: Callable[..., Any], database_url: str, which: str) -> None:
    task_id = asyncio.run(_stored(database_url, S.generating, COMPLETE))
    chosen = {
        "--task": ["--task", task_id],
        "--since": ["--since", "2026-03-01T08:00:00.000000Z"],
        "--since in another zone": ["--since", "2026-03-01T09:00:00+01:00"],
        "all": [],
    }[which]

    dry = command("callbacks", "replay", *chosen, "--dry-run").stdout
    before = json.loads(command("tasks", "show", task_id).stdout)["status"]
    done, again = [command("callbacks", "replay", *chosen).stdout for _ in range(2)]
    after = json.loads(command("tasks", "show", task_id).stdout)

    assert (dry, before) == ("1 callbacks read, 1 would change a task.\n", "generating")
    assert (done, again) == ("1 callbacks read, 1 changed a task.\n", "1 callbacks read, 0 changed a task.\n")
    assert (after["status"], after["resolved_by"], len(after["clips"])) == ("succeeded", "replay", 1)


def test_replay_of_what_cannot_be_chosen_says_why(command: Callable[..., Any]) -> None:
    later = command("callbacks", "replay", "--since", "2999-01-01")
    unread = command("callbacks", "replay", "--since", "yesterday")
    both = command("callbacks", "replay", "--since", "2026-01-01", "--task", "x")

    assert later.stdout == "0 callbacks read, 0 changed a task.\n"
    assert (unread.exit_code, both.exit_code) == (1, 1)
    assert "2026-01-31T08:00:00Z" in unread.stderr
    assert "not both" in both.stderr


@pytest.mark.parametrize(
    ("settings", "controls", "check", "advice"),
    [
        ({}, {}, None, ""),
        ({"upstream_api_key": "wrong"}, {}, "upstream", "SOUNDPOST_UPSTREAM_API_KEY"),
        ({"upstream_api_key": ""}, {}, "upstream", "set it to the upstream's key"),
        ({}, {"credits": 0}, "upstream", "buy some"),
        ({"upstream_url": "http://127.0.0.1:9"}, {}, "upstream", "SOUNDPOST_UPSTREAM_URL"),
        ({"storage_url": "file:/proc/audio"}, {}, "storage", "SOUNDPOST_STORAGE_URL"),
        ({"public_url": "http://127.0.0.1:9"}, {}, "public_url", "does `soundpost serve` run?"),
        ({"poll_every": "often"}, {}, "settings", "SOUNDPOST_POLL_EVERY"),
        ({"secret_keys": "short"}, {}, "settings", "SOUNDPOST_SECRET_KEYS"),
    ],
)
async def test_doctor_says_what_is_wrong_and_what_to_do(
    database_url: str,
    tmp_path: Path,
    settings: dict[str, str],
    controls: dict[str, Any],
    check: str | None,
    advice: str,
) -> None:
    with Processes(tmp_path, database_url=database_url, upstream_api_key=UPSTREAM_KEY) as processes:
        sandbox = await processes.sandbox(**controls)
        chosen = {"upstream_url": sandbox.url, **settings}
        event_types, as_json = [await processes.run("doctor", *options, **chosen) for options in ((), ("--json",))]

    findings = json.loads(as_json.stdout)
    problems = [finding for finding in findings if not finding["ok"]]
    assert (event_types.code, as_json.code) == ((1, 1) if check else (0, 0))
    assert [finding["check"] for finding in problems] == ([check] if check else [])
    assert all(advice in finding["detail"] for finding in problems)
    assert event_types.stdout.count("PROBLEM") == len(problems)
    assert event_types.stdout.count("ok     ") == len(findings) - len(problems)


async def test_doctor_sees_a_held_queue_and_the_way_in(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, upstream_api_key=UPSTREAM_KEY, hold_recheck="600") as processes:
        sandbox = await processes.sandbox(credits=0)
        port = free_port()
        service = await processes.serve(database_url, sandbox.url, port=port)
        async with client_of(service.url) as client:
            await create_task(client)

            async def is_held() -> bool:
                checks = (await client.get("/readyz")).json()["checks"]
                return bool(checks["queue"]["status"] == "degraded")

            await eventually(is_held)
            ready = (await client.get("/readyz")).json()["checks"]
        reached = {"database_url": database_url, "upstream_url": sandbox.url, "public_url": service.url}
        looked = await processes.run("doctor", "--json", **reached)

    found = {finding["check"]: finding for finding in json.loads(looked.stdout)}
    assert {name: found[name]["detail"] for name in ready} == {name: check["detail"] for name, check in ready.items()}
    assert not found["queue"]["ok"]
    assert "buy some" in found["queue"]["detail"]
    assert found["public_url"] == {"check": "public_url", "ok": True, "detail": "it reaches this service"}


async def test_doctor_leaves_out_what_needs_a_database_that_does_not_answer(tmp_path: Path) -> None:
    with Processes(tmp_path, database_url="sqlite+aiosqlite:////proc/soundpost.db") as processes:
        ended = await processes.run("doctor", "--json")

    findings = json.loads(ended.stdout)
    assert [finding["check"] for finding in findings] == ["settings", "database", "storage", "public_url"]
    assert [finding["detail"] for finding in findings if not finding["ok"]] == [
        "the database does not answer (unable to open database file): check SOUNDPOST_DATABASE_URL"
    ]
    assert ended.code == 1


async def test_doctor_asks_for_a_migration(empty_database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, database_url=empty_database_url) as processes:
        looked = await processes.run("doctor")

    assert looked.code == 1
    assert "run `soundpost migrate`" in looked.stdout


@pytest.fixture
def command(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `soundpost` on the test's database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", database_url)
    monkeypatch.setenv("SOUNDPOST_SECRET_KEYS", SECRET_KEY)
    return lambda *words: CliRunner().invoke(main, words)


async def _task(database: Database, status: TaskStatus, clips: tuple[int, ...] = (0,), **columns: Any) -> Task:
    async with database.reads() as session:
        key_id = await session.scalar(select(ApiKey.id).limit(1))
    task = await add_task(database, key_id or await add_key(database), status, **columns)
    async with database.writes.begin() as session:
        for index in clips:
            session.add(Clip(task_id=task.id, index=index, created_at=MORNING, attempts=0))
    return task


async def _stored(database_url: str, status: TaskStatus, heard: bytes | None = None) -> str:
    """A task, and a callback about it that could not be read when it came."""
    database = Database(database_url)
    task = await _task(database, status, clips=(), submitted_at=MORNING)
    if heard is not None:
        async with database.writes.begin() as session:
            kept = {"headers": {}, "body": heard, "outcome": CallbackOutcome.unreadable}
            session.add(Callback(task_id=task.id, received_at=MORNING, **kept))
    await database.close()
    return task.id


async def _try(database: Database, task: Task, status: TaskStatus, upstream_task_id: str | None) -> None:
    async with database.writes.begin() as session:
        locked = await lock_task(session, task.id)
        assert locked is not None
        lifecycle = lifecycle_of(database)
        await resolve(lifecycle, session, locked, status, upstream_task_id, await database.now(session))


async def _resolve(database: Database, task: Task, status: TaskStatus, upstream_task_id: str) -> bool:
    try:
        await _try(database, task, status, upstream_task_id)
    except CannotResolve:
        before = await event_types(database, task.id)
        assert before == ["task.created"]
        return False
    return True
