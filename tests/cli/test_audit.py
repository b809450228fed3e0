"""What commands write into the audit log, and how it is listed."""

import json
from collections.abc import Callable
from typing import Any

from app.database.engine import Database
from app.enums import Charge, TaskStatus
from tests.support.rows import add_key, add_task, stored


def test_operators_commands_are_written_down_and_listed(command: Callable[..., Any], database_url: str) -> None:
    key = command("keys", "create", "shop").stdout.strip()
    stored(database_url, lambda database: add_key(database, "other"))
    [shop, _] = json.loads(command("keys", "list", "--json").stdout)
    for words in (["keys", "rotate", shop["id"]], ["keys", "revoke", shop["id"]], ["prune"], ["prune", "--dry-run"]):
        assert command(*words).exit_code == 0, words

    listed, lines = json.loads(command("audit", "--json").stdout), command("audit", "--limit", "2")

    assert [each["action"] for each in listed] == ["retention.applied", "key.revoked", "key.rotated", "key.created"]
    assert {each["actor"] for each in listed} == {"operator"}
    assert key not in json.dumps(listed)
    assert [line.split("  ")[1:3] for line in lines.stdout.splitlines()] == [
        ["operator", "retention.applied"],
        ["operator", "key.revoked"],
    ]
    assert "More follow" in lines.stderr
    assert command("audit", "--until", "1h").stdout == ""
    assert command("audit", "--since", "never").exit_code == 2


def test_what_operators_do_to_tasks_is_written_down(command: Callable[..., Any], database_url: str) -> None:
    async def fill(database: Database) -> list[str]:
        key = await add_key(database)
        statuses = TaskStatus.unconfirmed, TaskStatus.failed
        return [key, *[(await add_task(database, key, status, charge=Charge.none)).id for status in statuses]]

    key_id, unconfirmed, failed = stored(database_url, fill)
    assert command("tasks", "resolve", unconfirmed, "--status", "failed").exit_code == 0
    new = command("tasks", "retry", failed).stdout.strip()
    # That is the same order again.
    assert command("tasks", "retry", failed).stdout.strip() == new
    ordered = command("tasks", "submit", "rain", "--as", "tests").stdout.strip()
    assert command("after-restore", "--yes").exit_code == 0

    entries = json.loads(command("audit", "--json").stdout)
    assert [(each["action"], each["target"], each["detail"]) for each in reversed(entries)] == [
        ("task.resolved", unconfirmed, {"status": "failed", "upstream_task_id": None}),
        ("task.ordered_again", new, {"instead_of": failed}),
        ("task.ordered", ordered, {"key": key_id}),
        ("queue.distrusted", None, {"tasks": 2}),
    ]
    assert {each["actor"] for each in entries} == {"operator"}
