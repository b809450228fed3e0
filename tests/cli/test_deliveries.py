"""`soundpost deliveries`: an operator finds webhooks of every caller, and sends them again."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.database.base import new_id
from app.database.engine import Database
from app.enums import DeliveryStatus, TaskStatus, WebhookType
from app.models import Delivery, WebhookEndpoint
from tests.support.clock import MORNING
from tests.support.processes import Processes
from tests.support.rows import add_key, add_task, stored
from tests.support.settings import UNREACHABLE
from tests.support.terminal import run_on_terminal

Command = Callable[..., Any]
D = DeliveryStatus


def test_list_takes_its_filters_and_says_when_more_follow(command: Command, database_url: str) -> None:
    key_id, endpoint_id, task_id, ids = stored(database_url, _deliveries)
    given_up, delivered, of_task = ids

    def listed(*options: str) -> list[str]:
        return [each["id"] for each in json.loads(command("deliveries", "list", "--json", *options).stdout)]

    assert listed() == [of_task, delivered, given_up]
    assert listed("--status", "given_up") == [given_up]
    assert listed("--endpoint", endpoint_id) == [delivered, given_up]
    assert listed("--task", task_id) == [of_task]
    assert listed("--key", "theirs") == [of_task]
    assert listed("--key", key_id, "--status", "delivered") == [delivered]
    assert listed("--after", delivered) == [given_up]
    first = command("deliveries", "list", "--limit", "1")
    assert first.stdout == f"{of_task}  pending    task.succeeded     0 attempts  https://example.com/\\x1b[2J\n"
    assert first.stderr.startswith(f"More follow: `--after {of_task}`")
    assert command("deliveries", "list", "--limit", "3").stderr == ""
    assert command("deliveries", "list", "--key", "nobody").exit_code == 2


def test_resend_makes_deliveries_due_and_names_those_that_are_not_there(command: Command, database_url: str) -> None:
    *_, (given_up, delivered, of_task) = stored(database_url, _deliveries)

    ended = command("deliveries", "resend", given_up, "nothing", delivered)
    states = {each["id"]: each for each in json.loads(command("deliveries", "list", "--json").stdout)}

    assert (ended.exit_code, ended.stdout) == (1, f"{given_up} is due now.\n{delivered} is due now.\n")
    assert ended.stderr == "No delivery has the id nothing; `soundpost deliveries list` shows them.\n"
    assert [states[each]["status"] for each in (given_up, delivered, of_task)] == ["pending"] * 3
    # Webhook ids and what was tried stay; the schedule begins again.
    assert [(states[each]["attempts"], states[each]["delivered_at"]) for each in (given_up, delivered)] == 2 * [
        (3, None)
    ]
    assert states[given_up]["next_attempt_at"] > states[of_task]["next_attempt_at"]
    assert command("deliveries", "resend", of_task).exit_code == 0
    entries = json.loads(command("audit", "--json").stdout)
    assert [(each["actor"], each["action"], each["target"]) for each in reversed(entries)] == [
        ("operator", "delivery.resent", each) for each in (given_up, delivered, of_task)
    ]
    assert command("deliveries", "resend").exit_code == 2


def test_terminal_gets_a_table(migrated_sqlite: Path, tmp_path: Path) -> None:
    (tmp_path / "soundpost.db").write_bytes(migrated_sqlite.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    *_, (given_up, _, of_task) = stored(url, _deliveries)
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, database_url=url).environment()

    shown = run_on_terminal(["deliveries", "list"], tmp_path, environment)
    wide = run_on_terminal(["deliveries", "list"], tmp_path, environment, columns=140)

    header, latest, *_, oldest = shown.lines
    assert header.split() == ["DELIVERY", "STATUS", "AGE", "EVENT", "URL"]
    assert {"ATTEMPTS", "NEXT"} < set(wide.lines[0].split())
    assert latest.startswith(f"{of_task}  pending    ")
    assert oldest.startswith(f"{given_up}  given_up   ")
    assert ("\x1b[2J" in shown.raw, max(map(len, shown.lines)) <= 80) == (False, True)


async def _deliveries(database: Database) -> tuple[str, str, str, list[str]]:
    """Two deliveries of a caller to an endpoint, and one of another caller about a task; they come oldest first."""
    ours, theirs = await add_key(database, "ours"), await add_key(database, "theirs")
    task = await add_task(database, theirs, TaskStatus.succeeded)
    endpoint = {"api_key_id": ours, "url": "https://example.com/a", "secret_generation": 0, "created_at": MORNING}
    async with database.writes.begin() as session:
        session.add(WebhookEndpoint(id=(endpoint_id := new_id()), **endpoint))
        await session.flush()
        rows = [
            _delivery(ours, D.given_up, endpoint_id=endpoint_id, attempts_made=3),
            _delivery(ours, D.delivered, endpoint_id=endpoint_id, attempts_made=3, delivered_at=MORNING),
            _delivery(theirs, D.pending, task_id=task.id, due_at=MORNING + timedelta(days=1)),
        ]
        session.add_all(rows)
    return ours, endpoint_id, task.id, [row.id for row in rows]


def _delivery(key_id: str, status: DeliveryStatus, **columns: Any) -> Delivery:
    url = "https://example.com/\x1b[2J" if "task_id" in columns else "https://example.com/a"
    common = {"event_type": WebhookType.task_succeeded, "event_id": new_id(), "host": "h", "lane": "l", "body": b"{}"}
    return Delivery(id=new_id(), api_key_id=key_id, url=url, status=status, created_at=MORNING, **common, **columns)
