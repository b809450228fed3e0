"""Deliveries are attempted until they succeed or are given up; responses pause or disable their endpoint."""

import json
from datetime import timedelta
from itertools import pairwise

import pytest
import standardwebhooks

from app.enums import DeliveryStatus, DisabledBy
from app.models import ApiKey
from app.webhooks.signing import secret_of
from tests.support.clock import Clock
from tests.support.receivers import Connection, Reply, hang, receiving
from tests.support.rows import add_key
from tests.webhooks.outbox import outbox_of

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


async def test_delivery_is_done_after_a_2xx_response(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving(Reply(200, body=b"thanks")) as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)

        assert await outbox.attempt_due() == 1
        assert await outbox.attempt_due() == 0

        [delivery], [attempt], [got] = await outbox.deliveries(), await outbox.attempts(), receiver.requests
        assert (delivery.status, delivery.attempts_made, delivery.due_at) == (DeliveryStatus.delivered, 1, None)
        assert (attempt.status_code, attempt.response, attempt.error) == (200, "thanks", None)
        assert (got.body, got.webhook_id) == (delivery.body, delivery.event_id)
        assert got.headers["content-type"] == "application/json"
        secret = secret_of(await outbox.endpoint(endpoint.id)).text(outbox.services.keyring)
        standardwebhooks.Webhook(secret).verify(got.body, got.headers)


async def test_webhook_url_is_signed_with_the_keys_default_secret(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        await outbox.create_canceled_task(key, receiver.url)

        await outbox.attempt_due()

        [got] = receiver.requests
        async with outbox.database.reads() as session:
            owner = await session.get(ApiKey, key)
        assert owner is not None
        standardwebhooks.Webhook(secret_of(owner).text(outbox.services.keyring)).verify(got.body, got.headers)


async def test_failed_delivery_is_retried_at_the_times_of_the_schedule(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving(503) as receiver:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)
        began, times = clock.now, []
        while clock.now < began + DAY:
            times.append((clock.now - began).total_seconds())
            assert await outbox.attempt_due() == 1
            [delivery] = await outbox.deliveries()
            assert delivery.due_at is not None
            clock.now = delivery.due_at - timedelta(milliseconds=1)
            assert await outbox.attempt_due() == 0
            clock.now = delivery.due_at

        receiver.answer(204)
        await outbox.attempt_due()

        waits = [later - earlier for earlier, later in pairwise(times)]
        nominal = [5, 300, 1800, 7200, 18000, 36000, 50400]
        assert len(waits) >= 5
        assert all(0.8 <= wait / span <= 1.2 for wait, span in zip(waits, nominal, strict=False))
        [delivery] = await outbox.deliveries()
        assert delivery.status is DeliveryStatus.delivered
        assert {(got.webhook_id, got.body) for got in receiver.requests} == {(delivery.event_id, delivery.body)}
        assert len(await outbox.attempts()) == len(receiver.requests) == delivery.attempts_made


async def test_delivery_is_given_up_after_the_last_attempt_and_stays_stored(database_url: str) -> None:
    async with outbox_of(database_url, webhook_schedule="0,0,0") as outbox, receiving(500) as receiver:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)

        assert [await outbox.attempt_due() for _ in range(4)] == [1, 1, 1, 0]

        [delivery] = await outbox.deliveries()
        assert (delivery.status, delivery.due_at) == (DeliveryStatus.given_up, None)


@pytest.mark.parametrize(
    ("reply", "status_code", "error", "response"),
    [
        (Reply(302, headers=("Location: http://127.0.0.1:9/",)), 302, None, ""),
        (Reply(404, body=b"nobody \x00 here \xff"), 404, None, "nobody \ufffd here \ufffd"),
        (Reply(500, body=b"x" * 5000), 500, None, "x" * 1024),
        (hang, None, "ExchangeTooSlow: not done within 0.3 s", None),
    ],
)
async def test_failed_attempt_stores_status_error_and_response(
    database_url: str, reply: Reply, status_code: int | None, error: str | None, response: str | None
) -> None:
    async with outbox_of(database_url, webhook_timeout=0.3) as outbox, receiving(reply) as receiver:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)

        await outbox.attempt_due()

        [attempt], [delivery] = await outbox.attempts(), await outbox.deliveries()
        assert (attempt.status_code, attempt.error, attempt.response) == (status_code, error, response)
        assert delivery.status is DeliveryStatus.pending
        assert len(receiver.requests) == 1


async def test_attempt_to_a_forbidden_address_fails_with_that_reason(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, "http://127.0.0.1:9/")
        async with outbox.database.writes.begin() as session:
            found = await session.get(type(endpoint), endpoint.id)
            assert found is not None
            found.url = "http://10.0.0.1/"
        await outbox.create_canceled_task(key)

        await outbox.attempt_due()

        [attempt] = await outbox.attempts()
        assert attempt.error == "refused: the URL's host is a private address"


async def test_host_name_of_which_no_request_can_be_made_is_a_failed_attempt(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        await outbox.create_canceled_task(key, "http://xn--a/")

        assert await outbox.attempt_due() == 1

        [delivery], [attempt] = await outbox.deliveries(), await outbox.attempts()
        assert (delivery.status, delivery.attempts_made) == (DeliveryStatus.pending, 1)
        assert (attempt.status_code, attempt.error is None) == (None, False)


async def test_410_disables_the_endpoint_and_gives_up_its_pending_deliveries(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving(500) as receiver, receiving() as elsewhere:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        await outbox.add_endpoint(key, elsewhere.url, event_types=["endpoint.disabled"])
        await outbox.create_canceled_task(key)
        await outbox.attempt_due()
        receiver.answer(410)
        await outbox.create_canceled_task(key)

        await outbox.attempt_due()
        await outbox.attempt_due()

        disabled = await outbox.endpoint(endpoint.id)
        assert disabled.disabled_by is DisabledBy.gone
        mine = [delivery for delivery in await outbox.deliveries() if delivery.endpoint_id == endpoint.id]
        assert [delivery.status for delivery in mine] == [DeliveryStatus.given_up] * 2
        [request] = elsewhere.requests
        body = json.loads(request.body)
        assert body["type"] == "endpoint.disabled"
        assert body["data"]["endpoint"]["id"] == endpoint.id
        assert body["data"]["endpoint"]["disabled_by"] == "gone"


async def test_endpoint_failing_for_five_days_is_disabled_and_other_endpoints_are_notified(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving(500) as receiver, receiving() as elsewhere:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        await outbox.add_endpoint(key, elsewhere.url, event_types=["endpoint.disabled"])
        for _ in range(5):
            await outbox.create_canceled_task(key)
            await outbox.attempt_due()
            assert (await outbox.endpoint(endpoint.id)).disabled_at is None
            clock.now += DAY

        await outbox.attempt_due()
        await outbox.attempt_due()

        assert (await outbox.endpoint(endpoint.id)).disabled_by is DisabledBy.failing
        assert [json.loads(request.body)["type"] for request in elsewhere.requests] == ["endpoint.disabled"]
        await outbox.create_canceled_task(key)
        assert await outbox.attempt_due() == 0


@pytest.mark.parametrize(
    ("status", "outcome", "disabled_by"),
    [
        (200, DeliveryStatus.delivered, None),
        (410, DeliveryStatus.given_up, DisabledBy.gone),
        (429, DeliveryStatus.pending, None),
    ],
)
async def test_answer_whose_body_breaks_off_counts_by_its_status(
    database_url: str, status: int, outcome: DeliveryStatus, disabled_by: DisabledBy | None
) -> None:
    async def break_off(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(f"HTTP/1.1 {status} S\r\nRetry-After: 9\r\nContent-Length: 99\r\n\r\nthan".encode())

    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving(connected=break_off) as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)

        await outbox.attempt_due()

        [delivery], [attempt] = await outbox.deliveries(), await outbox.attempts()
        stored = await outbox.endpoint(endpoint.id)
        assert (delivery.status, stored.disabled_by) == (outcome, disabled_by)
        assert (attempt.status_code, attempt.response, attempt.error) == (status, "than", None)
        assert stored.paused_until == (clock.now + 9 * SECOND if status == 429 else None)


async def test_one_success_resets_failing_since(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving(500, 204, 500) as receiver:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)
        await outbox.attempt_due()
        assert (await outbox.endpoint(endpoint.id)).failing_since == clock.now
        clock.now += 6 * SECOND
        await outbox.attempt_due()

        assert (await outbox.endpoint(endpoint.id)).failing_since is None
        clock.now += 6 * DAY
        await outbox.create_canceled_task(key)
        await outbox.attempt_due()
        assert (await outbox.endpoint(endpoint.id)).disabled_at is None


async def test_throttling_receiver_gets_no_deliveries_until_retry_after(database_url: str) -> None:
    clock = Clock()
    slow_down = Reply(429, headers=("Retry-After: 9",))
    async with (
        outbox_of(database_url, clock) as outbox,
        receiving(slow_down, 204) as receiver,
        receiving() as other,
    ):
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.add_endpoint(key, other.url)
        await outbox.create_canceled_task(key)
        await outbox.attempt_due()

        await outbox.create_canceled_task(key)
        clock.now += 8.9 * SECOND
        await outbox.attempt_due()
        assert (len(receiver.requests), len(other.requests)) == (1, 2)
        clock.now += 0.2 * SECOND
        await outbox.attempt_due()

        assert len(receiver.requests) == 3
        assert {delivery.status for delivery in await outbox.deliveries()} == {DeliveryStatus.delivered}


async def test_delivery_of_a_dead_worker_is_sent_by_another_with_the_same_bytes(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving() as receiver:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)
        await outbox.loop.claim(10)

        assert await outbox.attempt_due() == 0
        clock.now += outbox.services.settings.webhook_lease
        async with outbox_of(database_url, clock) as survivor:
            assert await survivor.attempt_due() == 1

        [delivery], [got] = await outbox.deliveries(), receiver.requests
        assert (got.webhook_id, got.body) == (delivery.event_id, delivery.body)


async def test_result_of_a_worker_that_lost_its_claim_is_dropped(database_url: str) -> None:
    clock = Clock()
    async with outbox_of(database_url, clock) as outbox, receiving(204, 500) as receiver:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        await outbox.create_canceled_task(key)
        stalled = await outbox.loop.claim(10)
        clock.now += outbox.services.settings.webhook_lease
        await outbox.attempt_due()

        await outbox.loop.work(stalled.items[0])

        [delivery] = await outbox.deliveries()
        assert (delivery.status, delivery.attempts_made) == (DeliveryStatus.delivered, 1)
        assert len(receiver.requests) == 2


async def test_backlog_of_one_receiver_does_not_delay_others(database_url: str) -> None:
    async with outbox_of(database_url) as outbox, receiving(Reply(delay=0.05)) as receiver, receiving() as other:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, receiver.url)
        for _ in range(30):
            await outbox.create_canceled_task(key)
        await outbox.create_canceled_task(key, other.url)

        assert await outbox.attempt_due() == 6
        async with outbox.running():
            await receiver.until(30)

        assert receiver.max_at_once == 5
        assert len(other.requests) == 1
