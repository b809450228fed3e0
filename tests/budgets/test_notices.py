"""What a key's endpoints hear of its budget."""

import json

from app.auth.callers import Caller
from app.enums import WebhookType
from app.errors import BudgetExceeded
from app.tasks.order_schemas import TaskCreate
from tests.budgets.accounts import give
from tests.support.clock import Clock
from tests.support.rows import add_key
from tests.webhooks.outbox import Outbox, outbox_of

LOW, EXHAUSTED = WebhookType.budget_low, WebhookType.budget_exhausted


async def test_low_and_exhausted_budgets_are_told_once_in_a_window(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock, credit_price="V5=2,V5_5=3") as outbox:
        key_id = await add_key(outbox.database)
        await outbox.add_endpoint(key_id, "https://example.com/all")
        await outbox.add_endpoint(key_id, "https://example.com/one", event_types=[EXHAUSTED])
        await give(outbox.database, key_id, 11, now=clock.now)
        found = []
        for hours in (0, 24):
            clock.advance(hours=hours)
            # 11 credits are five tasks of 2; from 8.8 on they are low, and 1 is left.
            found.append([await _order(outbox, key_id) for _ in range(6)])
        kinds = [(delivery.event_type, delivery.url.rpartition("/")[2]) for delivery in await outbox.deliveries()]
        bodies = [json.loads(delivery.body) for delivery in await outbox.deliveries()]

    assert found == [[True] * 5 + [False]] * 2
    assert sorted(kinds) == sorted([(LOW, "all"), (EXHAUSTED, "all"), (EXHAUSTED, "one")] * 2)
    assert bodies[0] == {
        "type": LOW,
        "timestamp": "2026-03-01T08:00:00Z",
        "data": {
            "budget": {
                "limit": 11,
                "window": "day",
                "spent": 0,
                "reserved": 10,
                "left": 1,
                "resets_at": "2026-03-02T00:00:00Z",
            }
        },
    }


async def test_smaller_budget_is_told_at_the_next_order_and_a_larger_one_again(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox:
        key_id = await add_key(outbox.database)
        await outbox.add_endpoint(key_id, "https://example.com/all")
        for limit in (100, 5, 100, 10):
            clock.advance(minutes=1)
            await give(outbox.database, key_id, limit, now=clock.now)
            await _order(outbox, key_id)
            await _order(outbox, key_id)
        kinds = [delivery.event_type for delivery in await outbox.deliveries()]

    assert kinds == [LOW, EXHAUSTED, LOW, EXHAUSTED]


async def _order(outbox: Outbox, key_id: str) -> bool:
    """Whether an order was stored."""
    order = TaskCreate(prompt="rain", metadata={})
    try:
        await outbox.services.orders.place(Caller(key_id, is_admin=False), order)
    except BudgetExceeded:
        return False
    return True
