"""Giving a key a budget, and what counts in it."""

from datetime import timedelta

import pytest

from app.budgets.ledger import set_budget
from app.database.engine import Database
from app.enums import Window
from tests.budgets.accounts import account_of
from tests.support.clock import MORNING
from tests.support.rows import add_key


async def test_budget_is_given_changed_and_taken_back(database: Database) -> None:
    key_id = await add_key(database)
    found = []
    for limit, window in ((500_000, Window.day), (2_000, Window.month), (None, None)):
        async with database.writes.begin() as session:
            await set_budget(session, key_id, limit, window, MORNING)
        budget = await account_of(database, key_id)
        found.append((budget.credit_limit, budget.window, budget.starts_at, budget.balance))

    day = MORNING.replace(hour=0)
    assert found == [(500_000, Window.day, day, 0), (2_000, Window.month, day.replace(day=1), 0), (None, "day", day, 0)]


@pytest.mark.parametrize("hours", [1, 30])
async def test_budget_that_stays_is_not_written_anew(database: Database, hours: int) -> None:
    key_id = await add_key(database)
    for now in (MORNING, MORNING + timedelta(hours=hours)):
        async with database.writes.begin() as session:
            await set_budget(session, key_id, 500_000, Window.day, now)

    assert (await account_of(database, key_id)).starts_at == now.replace(hour=0)
