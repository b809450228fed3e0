"""The upstream's balance beside the ledgers, and what metrics tell of budgets."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from app.enums import TaskStatus, Window
from app.upstream.credits import KnownCredits, known_credits
from tests.budgets.accounts import check_ledger, entries_of, give, key_of
from tests.support.rows import add_key
from tests.support.sandbox import control
from tests.support.scrapes import scrape
from tests.support.service import Service, serve_with_sandbox


async def test_balance_moves_as_the_ledgers_say_until_somebody_else_spends(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.upstream.credits.FRESH_FOR", timedelta())
    async with serve_with_sandbox(database_url, tmp_path, sandbox={"credits": 500}) as service:
        before = await _look(service)
        for fault in ("", " [fault: refunded]", " [fault: http-413]", ""):
            task_id = await service.create_task(f"soft rain{fault}")
            await service.until(task_id, lambda task: task["status"] in ("succeeded", "failed"))
        after = await _look(service)
        await control(str(service.upstream.base_url), credits=400)
        entries = len(await entries_of(service.database, await key_of(service)))
        spent_by_others = await _look(service)
        checks = (await service.client.get("/readyz")).json()["checks"]
        account = await check_ledger(service.database, await key_of(service))
        seen = await scrape(service.client)

    assert (before.credits, before.charged, before.drift) == (Decimal(500), Decimal(0), Decimal(0))
    assert (after.credits, after.charged, after.drift) == (Decimal(495), Decimal(5), Decimal(0))
    assert (spent_by_others.charged, spent_by_others.drift) == (Decimal(5), Decimal(95))
    assert checks["drift"]["status"] == "degraded"
    # It is told, and nothing else.
    assert (account.charged, account.balance, account.entries) == (5000, -5000, entries)
    assert seen("soundpost_charged_credits") == 5


async def test_metrics_tell_of_budgets_without_room_and_of_tasks_that_wait_for_it(service: Service) -> None:
    now = datetime.now(UTC)
    keys = [await add_key(service.database, name) for name in ("full", "roomy", "over", "none")]
    for key_id, limit, since in zip(keys, (2, 3, 0, None), (now, now, now - timedelta(days=1), now), strict=True):
        await give(service.database, key_id, limit, Window.day, since)
    for due_at in (None, None, now):
        await service.add_task(TaskStatus.queued, due_at=due_at)
    await service.add_task(TaskStatus.canceled, due_at=None)

    seen = await scrape(service.client)

    assert seen("soundpost_budgets_exhausted") == 2
    assert seen("soundpost_tasks_held") == 2


async def test_budget_has_room_again_in_the_next_window(service: Service) -> None:
    key_id = await key_of(service)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    await give(service.database, key_id, 5, Window.day, yesterday)
    for _ in range(2):
        await service.add_task(TaskStatus.succeeded, now=yesterday)

    seen = await scrape(service.client)

    assert (await check_ledger(service.database, key_id)).spent == 5000
    assert seen("soundpost_budgets_exhausted") == 0


async def _look(service: Service) -> KnownCredits:
    """What the upstream says of the credits now, with what the ledgers say."""
    (await service.client.get("/v1/credits")).raise_for_status()
    async with service.database.reads() as session:
        known = await known_credits(session)
    assert known is not None
    return known
