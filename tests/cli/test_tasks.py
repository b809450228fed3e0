"""`soundpost tasks list` and `tasks show`: what an operator finds, for people and for programs."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.database.engine import Database
from app.enums import CallbackOutcome, Charge, DeliveryStatus, ErrorCode, TaskStatus, WebhookType
from app.models import Callback, Clip, Delivery, DeliveryAttempt, Task
from app.upstream.hold import Hold, hold_submits
from app.upstream.types import HoldReason
from tests.support.clock import MORNING
from tests.support.processes import Processes
from tests.support.rows import add_key, add_task, stored
from tests.support.settings import UNREACHABLE
from tests.support.terminal import run_on_terminal

Command = Callable[..., Any]
S = TaskStatus
HOSTILE = "rain \x1b[2J\x9b\u202e " + 20 * "and more rain "


def test_list_takes_its_filters_and_says_when_more_follow(command: Command, database_url: str) -> None:
    async def fill(database: Database) -> tuple[str, list[str]]:
        ours, theirs = await add_key(database, "ours"), await add_key(database, "theirs")
        times = [MORNING + timedelta(minutes=minute) for minute in range(4)]
        tasks = [
            await add_task(database, ours, S.failed, times[0], error_code=ErrorCode.content_rejected),
            await add_task(database, ours, S.queued, times[1], model="V9"),
            await add_task(database, theirs, S.queued, times[2]),
            await add_task(database, ours, S.queued, times[3]),
        ]
        return ours, [task.id for task in tasks]

    key_id, (failed, of_v9, of_theirs, latest) = stored(database_url, fill)

    def listed(*options: str) -> list[str]:
        return [task["id"] for task in json.loads(command("tasks", "list", "--json", *options).stdout)]

    assert listed() == [latest, of_theirs, of_v9, failed]
    assert listed("--status", "failed") == [failed]
    assert listed("--model", "V9") == [of_v9]
    assert listed("--key", "ours") == listed("--key", key_id) == [latest, of_v9, failed]
    assert listed("--since", "2026-03-01T08:00:30Z", "--until", "2026-03-01T08:02:30Z") == [of_theirs, of_v9]
    assert listed("--since", "1h") == []
    assert len(listed("--since", "99999d", "--until", "9999-12-31T23:59:59-14:00")) == 4
    assert listed("--key", "ours", "--after", of_theirs) == [of_v9, failed]
    page = command("tasks", "list", "--limit", "2")
    assert [line.split()[0] for line in page.stdout.splitlines()] == [latest, of_theirs]
    assert f"More follow: `--after {of_theirs}` lists them" in page.stderr
    assert command("tasks", "list", "--limit", "4").stderr == ""
    assert json.loads(command("tasks", "list", "--json", "--limit", "1").stdout)[0]["key"] == "ours"


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--key", "nobody"], 2, "No key has the name or id nobody; `soundpost keys list` shows them."),
        (["--since", "yesterday"], 2, "--since cannot be read: 'yesterday' is neither a time"),
        (["--until", "999999d"], 2, "--until cannot be read: '999999d'"),
        (["--after", "nothing"], 1, "No task has this id; `soundpost tasks list` shows them."),
        (["--limit", "0"], 2, "0 is not in the range"),
        (["--status", "done"], 2, "'done' is not one of"),
    ],
)
def test_list_refuses_what_it_cannot_look_for(command: Command, options: list[str], code: int, why: str) -> None:
    ended = command("tasks", "list", *options)

    assert (ended.exit_code, ended.stdout) == (code, "")
    assert why in " ".join(ended.stderr.replace("│", " ").split())


def test_long_list_is_read_in_pages_and_is_complete(command: Command, database_url: str) -> None:
    async def fill(database: Database) -> set[str]:
        key_id = await add_key(database)
        # All of one moment: their ids alone put them in order.
        return {(await add_task(database, key_id)).id for _ in range(103)}

    ids = stored(database_url, fill)
    all_of_them = json.loads(command("tasks", "list", "--json", "--limit", "103").stdout)
    ended = command("tasks", "list", "--json", "--limit", "102")

    assert [task["id"] for task in all_of_them] == sorted(ids, reverse=True)
    assert (len(json.loads(ended.stdout)), "More follow" in ended.stderr) == (102, True)


WAITS = [
    (S.queued, {}, None, "it is due: a worker takes it when the upstream's rate has room"),
    (S.queued, {}, HoldReason.no_credits, "the queue is held for 10m: the upstream account has no credits"),
    (S.queued, {"due_at": timedelta(minutes=5), "attempts": 3}, None, "its submit is tried again in "),
    (S.submitting, {"due_at": timedelta(seconds=40)}, None, "its POST is under way; without an answer it is unconf"),
    (S.unconfirmed, {}, None, "the answer to its POST is lost: a callback adopts it, or it fails at the deadline"),
    (S.generating, {"due_at": timedelta(seconds=40)}, None, "a callback ends it, or the next poll, in "),
    (S.failed, {"due_at": timedelta(days=3)}, None, "it has ended, and is polled once more in "),
    (S.succeeded, {}, None, None),
]


@pytest.mark.parametrize(("status", "columns", "reason", "waits"), WAITS)
def test_show_says_why_a_task_waits(
    command: Command,
    database_url: str,
    status: TaskStatus,
    columns: dict[str, Any],
    reason: HoldReason | None,
    waits: str | None,
) -> None:
    now = datetime.now(UTC)

    async def fill(database: Database) -> str:
        chosen = {n: now + value if isinstance(value, timedelta) else value for n, value in columns.items()}
        task = await add_task(database, await add_key(database), status, now, **chosen)
        if reason is not None:
            async with database.writes.begin() as session:
                await hold_submits(session, Hold(reason, now - timedelta(minutes=10), None), timedelta(seconds=30))
        return task.id

    shown = json.loads(command("tasks", "show", stored(database_url, fill)).stdout)

    assert (waits is None) == (shown["waits"] is None)
    assert (waits or "") in (shown["waits"] or "")
    assert (shown["deadline"] is not None) == (status in (S.generating, S.unconfirmed))


def test_show_has_all_that_belongs_to_a_task(command: Command, database_url: str) -> None:
    task_id = stored(database_url, _whole_task)

    shown = json.loads(command("tasks", "show", task_id).stdout)

    assert (shown["key"], shown["posts"], shown["charge"]) == ("tests", 2, "charged")
    assert shown["clips"][0]["archive"] == {
        "attempts": 4,
        "due_at": "2026-03-01T09:00:00Z",
        "error": "status 503",
        "given_up_at": None,
    }
    assert [(each["outcome"], each["size"]) for each in shown["callbacks"]] == [("mismatch", 2), ("applied", 3)]
    [delivery] = shown["deliveries"]
    assert (delivery["status"], delivery["event_type"]) == ("pending", "task.succeeded")
    assert [(each["status_code"], each["response"]) for each in delivery["attempts_made"]] == [(503, "busy \x1b[2J")]
    assert [event["type"] for event in shown["events"]] == ["task.created"]


def test_show_says_when_there_are_more_deliveries(command: Command, database_url: str) -> None:
    async def fill(database: Database) -> str:
        key_id = await add_key(database)
        task = await add_task(database, key_id, S.succeeded)
        async with database.writes.begin() as session:
            session.add_all(_delivery(task) for _ in range(101))
        return task.id

    task_id = stored(database_url, fill)
    ended = command("tasks", "show", task_id)

    assert len(json.loads(ended.stdout)["deliveries"]) == 100
    assert ended.stderr == f"These are the latest deliveries; `soundpost deliveries list --task {task_id}` lists all.\n"


def test_terminal_gets_tables_that_fit_and_cannot_be_commanded(migrated_sqlite: Path, tmp_path: Path) -> None:
    (tmp_path / "soundpost.db").write_bytes(migrated_sqlite.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    task_id = stored(url, _whole_task)
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, database_url=url).environment()

    listed = run_on_terminal(["tasks", "list"], tmp_path, environment)
    shown = run_on_terminal(["tasks", "show", task_id], tmp_path, environment, columns=70)
    wide = run_on_terminal(["tasks", "list"], tmp_path, environment, columns=140)
    as_json = run_on_terminal(["tasks", "show", task_id, "--json"], tmp_path, environment)

    keys = run_on_terminal(["keys", "list"], tmp_path, environment)

    assert [line.split() for line in keys.lines[:1]] == [["ID", "NAME", "MAY", "STATE"]]
    assert keys.lines[1].split()[1:] == ["tests", "submit,read,webhooks", "active"]
    header, row = listed.lines
    assert header.split() == ["ID", "STATUS", "AGE", "KEY", "PROMPT"]
    assert row.startswith(f"{task_id}  succeeded  ")
    assert row.endswith("…")
    assert {"CHARGE", "ERROR"} < set(wide.lines[0].split())
    # No colour, so that NO_COLOR has nothing to take away: bold names alone.
    assert set(re.findall(r"\x1b\[\d+m", listed.raw + shown.raw)) == {"\x1b[0m", "\x1b[1m"}
    assert all("\x9b" not in each.raw and "\x1b[2J" not in each.raw for each in (listed, shown, wide, as_json))
    assert max(map(len, listed.lines)) <= 80
    assert max(map(len, shown.lines)) <= 70
    text = " ".join(" ".join(shown.lines).split())
    for part in (
        r"rain \x1b[2J\x9b\u202e",
        "2, charge charged",
        "status 503",
        "mismatch",
        r"503 in 12 ms: busy \x1b[2J",
    ):
        assert part in text
    assert json.loads(as_json.raw)["id"] == task_id


async def _whole_task(database: Database) -> str:
    key_id = await add_key(database)
    task: Task = await add_task(database, key_id, S.succeeded, posts=2, charge=Charge.charged, prompt=HOSTILE)
    delivery = _delivery(task)
    due = {"due_at": MORNING + timedelta(hours=1), "attempts": 4, "archive_error": "status 503"}
    async with database.writes.begin() as session:
        session.add(delivery)
        session.add(Clip(task_id=task.id, index=0, title="Rain", created_at=MORNING, **due))
        for number, outcome in enumerate((CallbackOutcome.mismatch, CallbackOutcome.applied)):
            at = MORNING + timedelta(seconds=number)
            session.add(
                Callback(task_id=task.id, received_at=at, headers={}, body=b"{}" + number * b" ", outcome=outcome)
            )
        await session.flush()
        attempt = {"duration_ms": 12, "status_code": 503, "response": "busy \x1b[2J"}
        session.add(DeliveryAttempt(delivery_id=delivery.id, attempted_at=MORNING, **attempt))
    return task.id


def _delivery(task: Task) -> Delivery:
    return Delivery(
        api_key_id=task.api_key_id,
        task_id=task.id,
        event_id="e1",
        event_type=WebhookType.task_succeeded,
        url="https://example.com/hook",
        host="h",
        lane="l",
        body=b"{}",
        status=DeliveryStatus.pending,
        attempts_made=1,
        attempts=1,
        created_at=MORNING,
        due_at=MORNING + timedelta(hours=1),
    )
