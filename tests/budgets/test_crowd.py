"""A thousand orders at once, on three replicas: as many are admitted as the budget has room for."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

from sqlalchemy import func, select

from app.models import Task
from tests.budgets.accounts import check_ledger, give, key_of
from tests.support.service import serve


async def test_thousand_orders_on_three_replicas_get_a_budget_of_a_hundred(
    database_url: str, measured: Callable[[str], None]
) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serve(database_url, credit_price="1")) for _ in range(3)]
        database, key_id = replicas[0].database, await key_of(replicas[0])
        async with database.reads() as session:
            now = await database.now(session)
        await give(database, key_id, 100, now=now)
        places = asyncio.Semaphore(240)

        async def order(number: int) -> int:
            headers = {"Idempotency-Key": f"k{number}"} if number % 10 == 0 else {}
            async with places:
                while True:
                    answer = await replicas[number % 3].client.post(
                        "/v1/tasks", json={"prompt": "rain"}, headers=headers
                    )
                    if answer.status_code != 503:
                        return answer.status_code
                    await asyncio.sleep(float(answer.headers["Retry-After"]))

        began = time.monotonic()
        answers = Counter(await asyncio.gather(*(order(number) for number in range(1000))))
        took = time.monotonic() - began
        async with database.reads() as session:
            stored = await session.scalar(select(func.count()).select_from(Task))
        account = await check_ledger(database, key_id)

    measured(f"1,000 orders on three replicas, {database_url.partition('+')[0]}: {took:.1f} s")
    assert (answers, stored) == ({202: 100, 402: 900}, 100)
    assert (account.spent, account.reserved, account.balance) == (0, 100_000, -100_000)
