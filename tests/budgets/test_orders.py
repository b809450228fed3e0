"""Orders within a budget and beyond it, at every entrance."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from app.enums import EntryKind, Window
from app.models import IdempotencyKey, RateLimitHit, Task
from tests.budgets.accounts import account_of, check_ledger, entries_of, give, key_of, kinds_of
from tests.console.test_task_actions import browser_of
from tests.support.service import Service, client_with_key, serve

ORDER = {"prompt": "soft rain"}


async def test_order_reserves_its_price_in_its_commit(service: Service) -> None:
    key_id = await key_of(service)

    task_id = await service.create_task()

    [entry] = await entries_of(service.database, key_id)
    async with service.database.reads() as session:
        task = await session.get_one(Task, task_id)
    account = await check_ledger(service.database, key_id)
    assert (entry.task_id, entry.kind, entry.credits, entry.balance) == (task_id, EntryKind.reserve, -2500, -2500)
    assert (task.price, task.booked, task.reserved_at) == (2500, EntryKind.reserve, entry.created_at)
    assert (account.credit_limit, account.spent, account.reserved) == (None, 0, 2500)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}, {"Prefer": "wait=0"}])
async def test_order_beyond_the_budget_is_refused_and_leaves_nothing(service: Service, headers: dict[str, str]) -> None:
    key_id = await key_of(service)
    async with service.database.reads() as session:
        now = await service.database.now(session)
    await give(service.database, key_id, 5, now=now)
    accepted = [(await service.client.post("/v1/tasks", json=ORDER)).status_code for _ in range(2)]

    refused = await service.client.post("/v1/tasks", json=ORDER, headers=headers)

    problem = refused.json()
    assert (accepted, refused.status_code, problem["type"]) == ([202, 202], 402, "/problems/budget-exceeded")
    assert (problem["limit"], problem["spent"], problem["reserved"]) == (5, 0, 5)
    tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert problem["resets_at"] == tomorrow.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert 0 <= (tomorrow - now).total_seconds() + 1 - int(refused.headers["Retry-After"]) < 60
    async with service.database.reads() as session:
        counts = [await session.scalar(select(func.count()).select_from(kind)) for kind in (Task, IdempotencyKey)]
    assert counts == [2, 0]
    assert (await check_ledger(service.database, key_id)).entries == 2


async def test_refused_order_is_no_hit_of_the_rate_and_a_replay_reserves_nothing(database_url: str) -> None:
    async with serve(database_url, key_rate="2/60") as service:
        key_id = await key_of(service)
        async with service.database.reads() as session:
            now = await service.database.now(session)
        await give(service.database, key_id, 2.5, now=now)
        answers = [
            await service.client.post("/v1/tasks", json=ORDER, headers={"Idempotency-Key": key}) for key in "aaba"
        ]

        async with service.database.reads() as session:
            hits = await session.scalar(select(func.count()).select_from(RateLimitHit))
        assert [answer.status_code for answer in answers] == [202, 202, 402, 202]
        assert hits == 1
        assert await kinds_of(service.database, key_id) == [EntryKind.reserve]


async def test_crowd_of_orders_gets_what_its_budget_has_and_other_keys_lose_nothing(service: Service) -> None:
    key_id = await key_of(service)
    async with service.database.reads() as session:
        now = await service.database.now(session)
    await give(service.database, key_id, 25, Window.month, now)
    async with await client_with_key(service, "another") as another:
        clients = [another if number % 5 == 0 else service.client for number in range(60)]
        answers = await asyncio.gather(*(client.post("/v1/tasks", json=ORDER) for client in clients))

    mine, others = (
        [a.status_code for a, c in zip(answers, clients, strict=True) if (c is service.client) is own]
        for own in (True, False)
    )
    assert (mine.count(202), mine.count(402), set(others)) == (10, 38, {202})
    account = await check_ledger(service.database, key_id)
    assert (account.reserved, account.entries) == (25_000, 10)


async def test_client_of_the_vendor_hears_of_its_budget_in_the_vendors_words(service: Service) -> None:
    await give(service.database, await key_of(service), 1)
    body = {"prompt": "soft rain", "model": "V5", "callBackUrl": "https://example.com/hook"}

    answer = await service.client.post("/api/v1/generate/sounds", json=body)

    assert (answer.status_code, answer.json()["code"], answer.json()["data"]) == (200, 429, None)
    assert "insufficient credits" in answer.json()["msg"].lower()
    assert (await account_of(service.database, await key_of(service))).entries == 0


async def test_console_orders_again_within_the_budget_of_the_key(service: Service) -> None:
    task_id = await service.create_task()
    async with service.database.reads() as session:
        now = await service.database.now(session)
    await give(service.database, await key_of(service), 5, now=now)
    async with browser_of(service) as browser:
        answers = [await browser.act(task_id, "order-again", order_key=f"k{number}") for number in range(2)]

    async with service.database.reads() as session:
        count = await session.scalar(select(func.count()).select_from(Task))
    assert [answer.status_code for answer in answers] == [303, 402]
    assert "budget of this key has no room" in answers[1].text
    assert count == 2
