"""Changes of all deliveries of an endpoint answer at once, and are made in batches."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from app.workers.sweep import sweep_loop
from tests.support.receivers import receiving
from tests.webhooks.test_routes import ENDPOINTS, Callers, calling

SINCE = {"since": "2026-01-01T00:00:00Z"}


@pytest.fixture(autouse=True)
def _batches_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.webhooks.repository.MAX_BATCH", 2)
    monkeypatch.setattr("app.webhooks.repository.MAX_ERASED", 2)


async def test_disabling_gives_up_pending_deliveries_batch_by_batch(database_url: str) -> None:
    async with calling(database_url) as callers:
        endpoint = await _endpoint_with_deliveries(callers, 5)

        await callers.http.patch(endpoint, json={"disabled": True})

        assert await _statuses(callers) == {"pending": 3, "given_up": 2}
        # None of the others is attempted in the meantime.
        assert await callers.outbox.attempt_due() == 0
        assert await _sweep(callers) == 2
        assert await _statuses(callers) == {"given_up": 5}


async def test_enabling_ends_the_giving_up(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await _endpoint_with_deliveries(callers, 5, url=receiver.url)
        await callers.http.patch(endpoint, json={"disabled": True})

        await callers.http.patch(endpoint, json={"disabled": False})
        assert await _sweep(callers) == 0
        while await callers.outbox.attempt_due():
            pass

        assert await _statuses(callers) == {"delivered": 3, "given_up": 2}


async def test_recovery_counts_at_once_and_makes_due_batch_by_batch(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.webhooks.repository.MAX_COUNT", 6)
    async with calling(database_url, webhook_schedule="0") as callers, receiving(204, 500) as receiver:
        endpoint = await _endpoint_with_deliveries(callers, 8, url=receiver.url)
        while await callers.outbox.attempt_due():
            pass
        assert await _statuses(callers) == {"delivered": 1, "given_up": 7}
        receiver.answer(204)

        answer = await callers.http.post(f"{endpoint}/recover", json=SINCE)

        assert (answer.status_code, answer.json()) == (202, {"deliveries": 6})
        assert await _statuses(callers) == {"delivered": 1, "pending": 2, "given_up": 5}
        assert await _sweep(callers) == 3
        while await callers.outbox.attempt_due():
            pass
        assert await _statuses(callers) == {"delivered": 8}
        assert Counter(Counter(got.webhook_id for got in receiver.requests).values()) == {1: 1, 2: 7}


async def test_second_recovery_goes_on_with_the_first(database_url: str) -> None:
    async with calling(database_url, webhook_schedule="0") as callers, receiving(500) as receiver:
        endpoint = await _endpoint_with_deliveries(callers, 7, url=receiver.url)
        while await callers.outbox.attempt_due():
            pass
        now = datetime.now(UTC).isoformat()

        await callers.http.post(f"{endpoint}/recover", json=SINCE)
        late = await callers.http.post(f"{endpoint}/recover", json={"since": now})
        await _sweep(callers)

        assert late.json() == {"deliveries": 0}
        assert await _statuses(callers) == {"pending": 7}


async def test_deleted_endpoint_is_gone_at_once_and_erased_batch_by_batch(database_url: str) -> None:
    async with calling(database_url) as callers:
        endpoint = await _endpoint_with_deliveries(callers, 5)
        [delivery, *_] = await callers.deliveries()

        assert (await callers.http.delete(endpoint)).status_code == 204

        assert len(await callers.outbox.deliveries()) == 3
        calls: list[tuple[str, str, dict[str, Any] | None]] = [
            ("GET", endpoint, None),
            ("PATCH", endpoint, {"disabled": False}),
            ("DELETE", endpoint, None),
            ("GET", f"{endpoint}/secret", None),
            ("POST", f"{endpoint}/recover", SINCE),
            ("GET", f"/v1/deliveries/{delivery['id']}/attempts", None),
            ("POST", f"/v1/deliveries/{delivery['id']}/resend", None),
        ]
        for method, path, body in calls:
            assert (await callers.http.request(method, path, json=body)).status_code == 404, (method, path)
        assert (await callers.http.get(ENDPOINTS)).json()["items"] == []
        assert await callers.deliveries() == []
        await callers.canceled_task()
        assert await callers.outbox.attempt_due() == 0
        assert await _sweep(callers) == 2
        assert await callers.outbox.deliveries() == []


async def test_attempt_that_ends_after_its_endpoint_was_deleted_stores_nothing(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await _endpoint_with_deliveries(callers, 3, url=receiver.url)
        claimed = await callers.outbox.loop.claim(10)
        await callers.http.delete(endpoint)

        for item in claimed.items:
            await callers.outbox.loop.work(item)

        assert await callers.outbox.attempts() == []


async def test_new_url_shows_at_once_on_what_is_not_delivered(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver, receiving() as moved:
        endpoint = await _endpoint_with_deliveries(callers, 2, url=receiver.url)
        await callers.outbox.attempt_due()
        await callers.canceled_task()

        await callers.http.patch(endpoint, json={"url": moved.url})

        assert [each["url"] for each in await callers.deliveries()] == [moved.url, receiver.url, receiver.url]
        await callers.outbox.attempt_due()
        assert len(moved.requests) == 1


async def _endpoint_with_deliveries(callers: Callers, count: int, **fields: Any) -> str:
    """Create an endpoint with this many deliveries that are due; return its path."""
    endpoint = await callers.endpoint(**fields)
    for _ in range(count):
        await callers.canceled_task()
    return f"{ENDPOINTS}/{endpoint['id']}"


async def _statuses(callers: Callers) -> Counter[str]:
    return Counter(delivery.status.value for delivery in await callers.outbox.deliveries())


async def _sweep(callers: Callers) -> int:
    """Complete every sweep; return how many batches it took."""
    loop = sweep_loop(callers.outbox.services)
    batches = 0
    while items := (await loop.claim(1)).items:
        await loop.work(items[0])
        batches += 1
    return batches
