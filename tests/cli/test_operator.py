"""The commands by which an operator reads and resolves tasks, and applies stored callbacks again."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from app.callbacks.service import PAGE
from app.database.base import id_floor
from app.database.engine import Database
from app.enums import CallbackOutcome, ErrorCode, ResolvedBy, TaskStatus
from app.models import ApiKey, Callback, Clip, Task
from app.tasks.repository import lock_task
from app.tasks.service import resolve
from app.tasks.transitions import CannotResolve
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task, event_types, lifecycle_of, reread
from tests.support.service import services_of

S = TaskStatus
LIVE = (S.queued, S.submitting, S.unconfirmed, S.generating)
FIRST, COMPLETE = (
    json.dumps(
        {
            "code": 200,
            "data": {
                "callbackType": kind,
                "task_id": "up-1",
                "data": [{"id": "clip-1", "audio_url": "https://cdn.example/1.mp3"}],
            },
        }
    ).encode()
    for kind in ("first", "complete")
)

# The statuses from which an operator may set each status.
ALLOWED: dict[S, set[S]] = {
    S.generating: {S.queued, S.submitting, S.unconfirmed, S.failed},
    S.succeeded: {S.generating},
    S.failed: set(LIVE),
    S.canceled: set(LIVE),
}


@pytest.mark.parametrize("wanted", list(S))
@pytest.mark.parametrize("current", list(S))
async def test_operator_makes_only_the_transitions_of_the_table(
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


async def test_refused_transition_names_what_is_missing(database: Database) -> None:
    lost, silent = await _task(database, S.unconfirmed), await _task(database, S.generating, clips=())

    with pytest.raises(CannotResolve, match="unconfirmed cannot be made generating without --upstream-task-id"):
        await _try(database, lost, S.generating, None)
    with pytest.raises(CannotResolve, match="generating cannot be made succeeded without clips"):
        await _try(database, silent, S.succeeded, None)
    with pytest.raises(CannotResolve, match=r"unconfirmed cannot be made succeeded\."):
        await _try(database, lost, S.succeeded, None)


def test_tasks_commands_list_show_and_resolve_a_task(command: Callable[..., Any], database_url: str) -> None:
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
def test_replay_applies_the_chosen_callbacks_once(command: Callable[..., Any], database_url: str, which: str) -> None:
    task_id = asyncio.run(_stored(database_url, S.generating, COMPLETE))
    with_dashes = str(UUID(task_id)).upper()
    chosen = {
        "--task": ["--task", with_dashes],
        "--since": ["--since", "2026-03-01T08:00:00.000000Z"],
        "--since in another zone": ["--since", "2026-03-01T09:00:00+01:00"],
        "all": [],
    }[which]

    dry = command("callbacks", "replay", *chosen, "--dry-run").stdout
    callback_id = json.loads(command("tasks", "show", task_id).stdout)["callbacks"][0]["id"]
    before = json.loads(command("tasks", "show", with_dashes).stdout)["status"]
    done, again = [command("callbacks", "replay", *chosen).stdout for _ in range(2)]
    after = json.loads(command("tasks", "show", task_id).stdout)

    changed = "  status: generating → succeeded\n  upstream_task_id: none → up-1\n  resolved_by: none → replay\n"
    assert dry.startswith(f"{callback_id}  task {task_id}  received 2026-03-01T08:00:00Z\n{changed}")
    assert "  clips.0.upstream_audio_url: none → https://cdn.example/1.mp3\n" in dry
    assert (dry.splitlines()[-1], before) == ("1 callbacks read, 1 would change a task.", "generating")
    assert changed in done
    assert (done.splitlines()[-1], again) == (
        "1 callbacks read, 1 changed a task.",
        "1 callbacks read, 0 changed a task.\n",
    )
    assert (after["status"], after["resolved_by"], len(after["clips"])) == ("succeeded", "replay", 1)
    # Neither the dry run nor what has changed nothing.
    [entry] = json.loads(command("audit", "--json").stdout)
    assert [entry[name] for name in ("actor", "action", "target", "detail")] == [
        *("operator", "callbacks.replayed", task_id, {"changed": 1}),
    ]


def test_dry_run_shows_what_each_callback_would_change_and_changes_nothing(
    command: Callable[..., Any], database_url: str
) -> None:
    task_id = asyncio.run(_stored(database_url, S.generating, FIRST, COMPLETE, webhook_url="https://example.com/hook"))
    before = command("tasks", "show", task_id).stdout

    first, complete = json.loads(command("callbacks", "replay", "--dry-run", "--json").stdout)
    after = command("tasks", "show", task_id).stdout
    done = json.loads(command("callbacks", "replay", "--json").stdout)
    shown = json.loads(command("tasks", "show", task_id).stdout)

    # The second is applied to what the first would have made of the task.
    assert first["changes"]["clips.0.upstream_audio_url"] == {"before": None, "after": "https://cdn.example/1.mp3"}
    assert "status" not in first["changes"]
    assert complete["changes"]["status"] == {"before": "generating", "after": "succeeded"}
    assert [name for name in complete["changes"] if name.startswith("clips")] == []
    assert [json.loads(text)["version"] for text in (before, after)] == [1, 1]
    assert json.loads(after)["deliveries"] == json.loads(after)["clips"] == []
    assert [each["changes"].keys() for each in done] == [each["changes"].keys() for each in (first, complete)]
    assert [each["event_type"] for each in shown["deliveries"]] == ["task.succeeded"]


def test_replay_since_a_time_leaves_earlier_callbacks_alone(command: Callable[..., Any], database_url: str) -> None:
    task_id = asyncio.run(_stored(database_url, S.generating, FIRST, COMPLETE))
    [later] = json.loads(
        command("callbacks", "replay", "--since", "2026-03-01T08:00:00.5Z", "--dry-run", "--json").stdout
    )

    assert (later["task_id"], later["received_at"]) == (task_id, "2026-03-01T08:00:01Z")
    assert {"status", "clips.0.upstream_audio_url"} < later["changes"].keys()


async def test_callback_whose_id_was_made_by_a_late_clock_is_found(database_url: str) -> None:
    async with services_of(database_url) as services:
        task = await add_task(services.database, await add_key(services.database))
        now = datetime.now(UTC)
        async with services.database.writes.begin() as session:
            for ago, late in ((timedelta(hours=3), timedelta()), (timedelta(), timedelta(minutes=59))):
                kept = {"headers": {}, "body": b"{}", "outcome": CallbackOutcome.unreadable}
                made = f"{id_floor(now - ago, late)}{20 * '0'}"
                session.add(Callback(id=made, task_id=task.id, received_at=now - ago, **kept))
        minute_ago = now - timedelta(minutes=1)
        found = [task_id async for task_id in services.callbacks.tasks_to_replay(minute_ago)]

    assert found == [task.id]


async def test_tasks_are_found_once_however_many_there_are(database_url: str) -> None:
    async with services_of(database_url) as services:
        key_id = await add_key(services.database)
        tasks = [await add_task(services.database, key_id) for _ in range(PAGE + 3)]
        async with services.database.writes.begin() as session:
            for task in [*tasks, *reversed(tasks)]:
                kept = {"headers": {}, "body": b"{}", "outcome": CallbackOutcome.unreadable}
                session.add(Callback(task_id=task.id, received_at=datetime.now(UTC), **kept))
        hour = timedelta(hours=1)
        found = {
            since: [task_id async for task_id in services.callbacks.tasks_to_replay(since)]
            for since in (None, datetime.now(UTC) - hour, datetime.now(UTC) + hour)
        }

    everything, since_an_hour, from_tomorrow = found.values()
    assert sorted(everything) == sorted(since_an_hour) == sorted(task.id for task in tasks)
    assert from_tomorrow == []


def test_replay_refuses_a_choice_that_is_not_clear(command: Callable[..., Any]) -> None:
    later = command("callbacks", "replay", "--since", "2999-01-01")
    unread = command("callbacks", "replay", "--since", "yesterday")
    both = command("callbacks", "replay", "--since", "2026-01-01", "--task", "x")
    nobody = command("callbacks", "replay", "--task", "x")

    assert later.stdout == "0 callbacks read, 0 changed a task.\n"
    assert (unread.exit_code, both.exit_code) == (2, 2)
    assert "2026-01-31T08:00:00Z" in unread.stderr
    assert "not both" in both.stderr
    assert (nobody.exit_code, nobody.stderr) == (1, "No task has this id; `soundpost tasks list` shows them.\n")


def test_prompt_cannot_command_the_terminal(command: Callable[..., Any], database_url: str) -> None:
    asyncio.run(_stored(database_url, S.queued, prompt="rain \x1b[2J\x9b\u202e"))

    assert command("tasks", "list").stdout.endswith("rain \\x1b[2J\\x9b\\u202e\n")


async def _task(database: Database, status: TaskStatus, clips: tuple[int, ...] = (0,), **columns: Any) -> Task:
    async with database.reads() as session:
        key_id = await session.scalar(select(ApiKey.id).limit(1))
    task = await add_task(database, key_id or await add_key(database), status, **columns)
    async with database.writes.begin() as session:
        for index in clips:
            session.add(Clip(task_id=task.id, index=index, created_at=MORNING, attempts=0))
    return task


async def _stored(database_url: str, status: TaskStatus, *heard: bytes, **columns: Any) -> str:
    """Store a task, and callbacks for it, a second after each other, that were unreadable when they were received."""
    database = Database(database_url)
    task = await _task(database, status, clips=(), **{"submitted_at": MORNING, **columns})
    async with database.writes.begin() as session:
        for number, body in enumerate(heard):
            at = MORNING + timedelta(seconds=number)
            kept = {"headers": {}, "body": body, "outcome": CallbackOutcome.unreadable}
            session.add(Callback(task_id=task.id, received_at=at, **kept))
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
