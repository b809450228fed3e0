"""Orders by the command line are within the budget of the key that they are for."""

from collections.abc import Callable
from typing import Any

from app.database.engine import Database
from app.enums import Charge, TaskStatus
from tests.budgets.accounts import check_ledger, give
from tests.support.rows import add_key, add_task, stored


def test_command_line_orders_within_the_budget_of_the_key(command: Callable[..., Any], database_url: str) -> None:
    async def fill(database: Database) -> tuple[str, str]:
        key_id = await add_key(database)
        await give(database, key_id, 2.5)
        return key_id, (await add_task(database, key_id, TaskStatus.canceled, charge=Charge.none)).id

    key_id, old = stored(database_url, fill)
    results = [command("tasks", *words) for words in (["submit", "rain"], ["submit", "rain"], ["retry", old])]

    assert [result.exit_code for result in results] == [0, 1, 1]
    assert all("budget of this key has no room" in result.output for result in results[1:])
    assert stored(database_url, lambda database: check_ledger(database, key_id)).reserved == 2500
