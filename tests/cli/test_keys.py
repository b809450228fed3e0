"""Keys with scopes, weights, budgets and an end, from the command line."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.database.engine import Database
from app.models import ApiKey
from tests.support.clock import MORNING
from tests.support.rows import stored

Command = Callable[..., Any]
PLAIN = ["submit", "read", "webhooks"]


def test_key_is_made_with_what_it_may_do_spend_and_until_when(command: Command) -> None:
    options = ["--admin", "--weight", "3", "--budget", "2.5/month", "--expires-in", "90d", "--scope", "read,webhooks"]

    made = command("keys", "create", "shop", *options, "--scope", "submit")
    plain = command("keys", "create", "plain")

    assert [made.stdout[:3], len(made.stdout.split()), made.stderr] == ["sp_", 1, ""]
    shop, other = _listed(command)
    assert shop["scopes"] == [*PLAIN, "admin"]
    assert (shop["admin"], shop["weight"], shop["budget"]) == (True, 3, {"limit": 2.5, "window": "month"})
    lasts = datetime.fromisoformat(shop["expires_at"]) - datetime.fromisoformat(shop["created_at"])
    assert lasts == timedelta(days=90)
    assert plain.exit_code == 0
    assert (other["scopes"], other["weight"], other["budget"], other["expires_at"]) == (PLAIN, 1, None, None)
    assert other["last_used_at"] is None


def test_what_is_set_changes_and_the_rest_stays(command: Command) -> None:
    command("keys", "create", "shop", "--weight", "3", "--budget", "500/day", "--expires-in", "1h")
    [before] = _listed(command)
    changes: dict[str, tuple[list[str], dict[str, Any]]] = {
        "scopes": (["--scope", "read"], {"scopes": ["read"]}),
        "admin": (["--admin"], {"scopes": ["read", "admin"], "admin": True}),
        "no admin": (["--scope", "submit, read,webhooks"], {"scopes": PLAIN, "admin": False}),
        "admin alone": (["--scope", "admin"], {"scopes": ["admin"], "admin": True}),
        "weight": (["--weight", "100"], {"weight": 100}),
        "budget": (["--budget", "7/month"], {"budget": {"limit": 7, "window": "month"}}),
        "no budget": (["--no-budget"], {"budget": None}),
        "no expiry": (["--no-expiry"], {"expires_at": None}),
    }

    expected = before
    for name, (options, change) in changes.items():
        assert command("keys", "set", before["id"], *options).stdout == "Changed.\n", name
        expected = {**expected, **change}
        assert _listed(command) == [expected], name
    log = [entry["action"] for entry in json.loads(command("audit", "--json").stdout)]
    # Newest first; those of the beginning are of the budget and of the key itself.
    assert log[1:3] == ["key.budget_changed"] * 2
    assert log[-2:] == ["key.budget_changed", "key.created"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--weight", "0"], "0 is not in the range 1<=x<=100"),
        (["--weight", "101"], "101 is not in the range 1<=x<=100"),
        (["--weight", "1.5"], "'1.5' is not a valid int"),
        (["--budget", "500/week"], "--budget must be credits, with at most three decimals, and a window"),
        (["--budget", "-1/day"], "--budget must be credits"),
        (["--expires-in", "-1d"], "--expires-in cannot be read: '-1d' is no span such as 12h or 90d."),
        (["--expires-in", "0d"], "--expires-in cannot be read: '0d'"),
        (["--expires-in", "soon"], "--expires-in cannot be read: 'soon'"),
        (["--scope", "write"], "--scope takes submit, read, webhooks, admin, separated by commas, and not 'write'."),
        (["--scope", ","], "--scope takes submit, read, webhooks, admin"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("words", [["create", "shop"], ["set", "some-id"]], ids=" ".join)
def test_nonsense_is_refused_before_anything_is_made(
    command: Command, words: list[str], options: list[str], complaint: str
) -> None:
    refused = command("keys", *words, *options)

    said = " ".join(refused.stderr.replace("│", " ").split())
    assert (refused.exit_code, refused.stdout, complaint in said) == (2, "", True), said
    assert _listed(command) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_change_of_nothing_of_both_and_of_nobody_is_refused(command: Command) -> None:
    words = {
        "nothing": ([], 2, "Give what is to change"),
        "budgets": (["--budget", "1/day", "--no-budget"], 2, "Give --budget or --no-budget, not both."),
        "expiries": (["--expires-in", "1d", "--no-expiry"], 2, "Give --expires-in or --no-expiry, not both."),
        "nobody": (["--weight", "2"], 1, "No key has this id"),
    }
    for name, (options, code, complaint) in words.items():
        refused = command("keys", "set", "x", *options)
        assert (refused.exit_code, refused.stdout, complaint in refused.stderr) == (code, "", True), name


def test_rotation_keeps_what_a_key_may_do_and_until_when(command: Command) -> None:
    command("keys", "create", "shop", "--scope", "read", "--expires-in", "1h", "--budget", "5/day")
    [before] = _listed(command)

    assert command("keys", "rotate", before["id"]).stdout.startswith("sp_")

    assert _listed(command) == [before]


def test_expired_key_is_shown_and_orders_nothing(command: Command, database_url: str) -> None:
    command("keys", "create", "shop", "--expires-in", "1h")
    command("keys", "create", "other")
    until = command("keys", "list").stdout.splitlines()[0]
    stored(database_url, _expire)

    refused, alone = command("tasks", "submit", "rain", "--as", "shop"), command("tasks", "submit", "rain")

    assert until.split("  ")[2].startswith("active until 20")
    assert command("keys", "list").stdout.splitlines()[0].endswith(f"shop  expired {MORNING.isoformat()}")
    [key, _] = _listed(command)
    assert (refused.exit_code, refused.stderr) == (
        2,
        f"The key of shop has expired; `soundpost keys set {key['id']} --no-expiry` lets it work again.\n",
    )
    assert alone.exit_code == 0
    # It ends when the old one did.
    assert "The new key has expired as the old one has" in command("keys", "rotate", key["id"]).stderr
    assert command("keys", "set", key["id"], "--expires-in", "1d").exit_code == 0
    assert command("tasks", "submit", "rain", "--as", "shop").exit_code == 0


def _listed(command: Command) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command("keys", "list", "--json").stdout)
    return found


async def _expire(database: Database) -> None:
    async with database.writes.begin() as session:
        await session.execute(update(ApiKey).where(ApiKey.name == "shop").values(expires_at=MORNING))
