"""What commands write into the audit log, and how it is listed."""

import json
from collections.abc import Callable
from typing import Any

from tests.support.rows import add_key, stored


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
