"""The rate of an endpoint holds over processes and restarts, and what waits for it costs nothing."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.database.engine import Database
from app.models import Delivery, DeliveryAttempt, EndpointSend, WebhookEndpoint
from app.webhooks.schemas import EndpointUpdate
from app.workers.runner import wake_due
from tests.support.clock import Clock
from tests.support.receivers import Receiver, Reply, receiving
from tests.support.rows import add_key
from tests.support.wait import eventually
from tests.webhooks.outbox import Outbox, outbox_of
from tests.webhooks.test_routes import ENDPOINTS, URL, calling

SECOND = timedelta(seconds=1)


async def test_rate_is_read_written_and_removed(database_url: str) -> None:
    async with calling(database_url) as callers:
        made = await callers.endpoint(rate=" 20 / 2.50")
        path = f"{ENDPOINTS}/{made['id']}"
        changes: list[Any] = [{"rate": "1/86400"}, {"description": "kept"}, {"rate": "3/0.2"}, {"rate": None}]
        changed = [(await callers.http.patch(path, json=change)).json()["rate"] for change in changes]

        assert (made["rate"], changed) == ("20/2.5", ["1/86400", "1/86400", "3/0.2", None])
        assert (await callers.endpoint())["rate"] is None
        for wrong in ("", "10", "0/1", "10/0", "-1/1", "10001/1", "1/86401", "1/nan", "1/1/1", 10, ["10/1"], "x" * 33):
            answer = await callers.http.post(ENDPOINTS, json={"url": URL, "rate": wrong})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/rate"), wrong


@pytest.mark.parametrize(("rate", "count"), [((10, 1), 35), ((1, 0.2), 6)])
async def test_no_window_holds_more_attempts_than_the_rate_over_processes_and_kinds(
    database_url: str, rate: tuple[int, float], count: int, measured: Callable[[str], None]
) -> None:
    requests, seconds = rate
    async with AsyncExitStack() as stack, receiving(Reply(204, delay=0.01)) as receiver:
        outboxes = [await stack.enter_async_context(outbox_of(database_url)) for _ in range(2)]
        first = outboxes[0]
        key = await add_key(first.database)
        endpoint = await first.add_endpoint(key, receiver.url, rate=f"{requests}/{seconds}")
        arrived = _note_arrivals(receiver)
        for number in range(count - 1):
            if number % 5:
                await first.create_canceled_task(key)
            else:
                async with first.database.transaction() as (session, now):
                    found = await session.get_one(WebhookEndpoint, endpoint.id)
                    first.services.webhook_lifecycle.send_test(session, found, now)
        for outbox in outboxes:
            await stack.enter_async_context(outbox.running())
        attempt = await _first_attempt(first)
        async with first.database.transaction() as (session, now):
            delivery = await session.get_one(Delivery, attempt.delivery_id)
            await first.services.webhook_lifecycle.resend(session, delivery, now)
        await receiver.until(count)

        assert _fullest(arrived, seconds) <= requests
        assert len(receiver.requests) == count
        # Each window but the last one holds as many as it may, and they follow each other closely.
        took, least = arrived[-1] - arrived[0], (count - 1) // requests * seconds
        measured(f"rate {requests}/{seconds} s, {database_url.partition('+')[0]}: {least / took:.0%} of it is used")
        assert took < least * 1.4 + 1
        assert len({request.webhook_id for request in receiver.requests}) == count - 1


async def test_deliveries_wait_in_order_and_use_up_no_attempt(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving() as receiver, receiving() as other:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url, rate="2/10")
        for _ in range(5):
            await outbox.create_canceled_task(key, other.url)
            clock.now += timedelta(milliseconds=1)
        waiting = [each.id for each in await outbox.deliveries() if each.endpoint_id == endpoint.id]
        began, made = clock.now, []
        while clock.now < began + 25 * SECOND:
            made.append(await outbox.attempt_due())
            clock.now += SECOND

        assert made[0] == 2 + 5
        # Each window begins with the answers, some milliseconds after the claim.
        assert [second for second, count in enumerate(made) if count] == [0, 11, 22]
        assert sum(made) == 10
        attempted = [each.delivery_id for each in await outbox.attempts() if each.delivery_id in waiting]
        assert [{*attempted[:2]}, {*attempted[2:4]}, {*attempted[4:]}] == [
            {*waiting[:2]}, {*waiting[2:4]}, {*waiting[4:]}
        ]  # fmt: skip
        assert {each.attempts_made for each in await outbox.deliveries()} == {1}


async def test_attempt_counts_until_a_whole_window_after_its_answer_and_that_of_a_dead_process_until_it_lapses(
    database_url: str,
) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url, rate="2/10")
        for _ in range(4):
            await outbox.create_canceled_task(key)
        answered, lost = (await outbox.loop.claim(100)).items
        clock.now += 5 * SECOND
        await outbox.loop.work(answered)
        lease = outbox.services.settings.webhook_lease

        clock.now += 9 * SECOND
        assert await outbox.attempt_due() == 0
        clock.now += SECOND
        assert await outbox.attempt_due() == 1
        clock.now = lost.claimed_at + lease + 9 * SECOND
        assert await outbox.attempt_due() == 1
        clock.now += SECOND
        assert await outbox.attempt_due() == 1
        assert [each.endpoint_id for each in await outbox.deliveries()] == [endpoint.id] * 4
        # Only what counts is kept.
        assert await _count_sends(outbox.database) == 2


async def test_claim_says_when_the_next_attempt_may_be_made_and_nothing_else_wakes_for_it(database_url: str) -> None:
    # About the time of the database, which the look at due rows goes by.
    clock = Clock(datetime.now(UTC))
    async with outbox_of(database_url, clock) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url, rate="1/3600")
        for _ in range(3):
            await outbox.create_canceled_task(key)
        assert await _wakes(outbox)
        assert await outbox.attempt_due() == 1

        clock.now += SECOND
        claimed = await outbox.loop.claim(100)
        assert claimed.items == []
        assert claimed.idle
        assert 3599 * SECOND < claimed.idle < 3600 * SECOND
        assert not await _wakes(outbox)

        await outbox.create_canceled_task(key, receiver.url)
        assert await _wakes(outbox)
        assert await outbox.attempt_due() == 1
        assert not await _wakes(outbox)
        await _change(outbox, endpoint, rate=None)
        assert await _wakes(outbox)
        assert await outbox.attempt_due() == 3


async def test_new_rate_counts_from_the_next_claim_on(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url, rate="3/86400")
        for _ in range(9):
            await outbox.create_canceled_task(key)
        made = [await outbox.attempt_due()]
        clock.now += 20 * SECOND
        for rate in ("3/86400", "4/86400", "2/30", "2/10"):
            await _change(outbox, endpoint, rate=rate)
            made.append(await outbox.attempt_due())

        assert made == [3, 0, 1, 0, 1]


async def test_full_endpoints_are_not_overdue(database_url: str) -> None:
    clock = Clock()
    async with calling(database_url, clock=clock) as callers, receiving() as receiver:
        await callers.endpoint(receiver.url, rate="1/86400")
        for _ in range(2):
            await callers.canceled_task()
        await callers.outbox.attempt_due()
        clock.now += timedelta(minutes=10)

        check = (await callers.http.get("/readyz")).json()["checks"]["overdue"]

        assert "deliver" not in check["detail"], check


async def _first_attempt(outbox: Outbox) -> DeliveryAttempt:
    async def is_made() -> bool:
        return bool(await outbox.attempts())

    await eventually(is_made)
    return (await outbox.attempts())[0]


def _note_arrivals(receiver: Receiver) -> list[float]:
    arrived: list[float] = []
    respond = receiver.respond

    def note(request: Any) -> Any:
        arrived.append(time.monotonic())
        return respond(request)

    receiver.respond = note
    return arrived


def _fullest(arrived: Sequence[float], seconds: float) -> int:
    """The most arrivals in any window of so many seconds."""
    return max(sum(begin <= at < begin + seconds for at in arrived) for begin in arrived)


async def _wakes(outbox: Outbox) -> bool:
    """Whether the look at due rows wakes the worker."""
    outbox.loop.wakeup.clear()
    await wake_due([outbox.loop], outbox.database)
    return outbox.loop.wakeup.is_set()


async def _change(outbox: Outbox, endpoint: WebhookEndpoint, **fields: Any) -> None:
    async with outbox.database.transaction() as (session, now):
        found = await session.get_one(WebhookEndpoint, endpoint.id)
        await outbox.services.webhook_lifecycle.update_endpoint(session, found, EndpointUpdate(**fields), now)


async def _count_sends(database: Database) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count()).select_from(EndpointSend)) or 0
