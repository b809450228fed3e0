"""Deliveries are inserted in the transaction of their event, for each endpoint that wants its type."""

import json
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import event

from app.egress import check_url
from app.enums import DeliveryStatus, ResolvedBy, WebhookType
from app.models import Task
from app.tasks.events import TaskWebhook
from app.tasks.repository import lock_task
from app.upstream.types import Report, ReportedClip, Stage
from tests.support.clock import Clock
from tests.support.rows import add_key
from tests.webhooks.outbox import Outbox, outbox_of

URL = "http://127.0.0.1:9/hook"
CLIP = ReportedClip(upstream_clip_id="c1", audio_url="https://cdn.example/a.mp3")


async def report(outbox: Outbox, task: Task, *reports: Report) -> None:
    """Let the upstream say these, in one commit."""
    async with outbox.database.writes.begin() as session:
        locked = await lock_task(session, task.id)
        assert locked is not None
        for said in reports:
            now = await outbox.database.now(session)
            await outbox.services.lifecycle.apply_report(session, locked, said, now, ResolvedBy.callback)


async def test_each_transition_is_delivered_with_the_task_as_of_then(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, URL)
        task = await outbox.create_task(key)
        await report(outbox, task, Report(Stage.running, "u1", clips=(CLIP,)), Report(Stage.succeeded, "u1"))

        deliveries = await outbox.deliveries()

        bodies = [TaskWebhook.model_validate_json(delivery.body) for delivery in deliveries]
        assert [body.type for body in bodies] == ["task.submitted", "task.progressed", "task.succeeded"]
        assert [body.data.task.version for body in bodies] == [2, 3, 4]
        assert [body.data.task.status for body in bodies] == ["generating", "generating", "succeeded"]
        assert {delivery.endpoint_id for delivery in deliveries} == {endpoint.id}
        assert {delivery.task_id for delivery in deliveries} == {task.id}
        assert all(delivery.status is DeliveryStatus.pending for delivery in deliveries)


async def test_body_has_type_timestamp_and_task(database_url: str) -> None:
    async with outbox_of(database_url, Clock(datetime(2026, 11, 1, 12, tzinfo=UTC))) as outbox:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, URL)
        task = await outbox.create_canceled_task(key)

        [delivery] = await outbox.deliveries()

        body: dict[str, Any] = json.loads(delivery.body)
        assert body.keys() == {"type", "timestamp", "data"}
        assert body["type"] == "task.canceled"
        assert body["timestamp"] == "2026-11-01T12:00:00Z"
        assert body["data"]["task"]["id"] == task.id
        assert body["data"]["task"]["status"] == "canceled"


async def test_link_in_a_webhook_outlives_every_attempt(database_url: str) -> None:
    async with outbox_of(database_url, link_ttl=60) as outbox:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, URL)
        task = await outbox.create_task(key)
        began = time.time()
        await report(outbox, task, Report(Stage.running, "u1", clips=(CLIP,)), Report(Stage.succeeded, "u1"))
        async with outbox.database.writes.begin() as session:
            locked = await lock_task(session, task.id)
            assert locked is not None
            now = await outbox.database.now(session)
            outbox.services.lifecycle.clips.archived(session, locked, locked.clips[0], now)

        clips = [json.loads(each.body)["data"]["task"]["clips"] for each in await outbox.deliveries()]

        # Jitter or Retry-After can double each delay.
        last_attempt = began + 2 * sum(span.total_seconds() for span in outbox.services.settings.webhook_schedule)
        links = [clip["audio_url"] for shown in clips for clip in shown if clip["audio_url"]]
        assert links
        for link in links:
            [expires] = parse_qs(urlsplit(link).query)["expires"]
            assert last_attempt + 59 <= int(expires) <= last_attempt + 120


async def test_webhook_url_gets_final_events_only(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        task = await outbox.create_task(key, URL)
        await report(outbox, task, Report(Stage.running, "u1", clips=(CLIP,)), Report(Stage.succeeded, "u1"))

        [delivery] = await outbox.deliveries()

        assert (delivery.event_type, delivery.endpoint_id, delivery.url) == ("task.succeeded", None, URL)


@pytest.mark.parametrize(
    "url",
    [
        "https://xn--ls8h.la/hook",
        "https://xn--a.example.com/",
        "https://xn--/",
        "https://xn--i-7iq.ws/?a=b",
        "https://[2606:4700::1111]:8443/",
        "HTTPS://Example.COM./#fragment",
    ],
)
async def test_every_accepted_url_can_be_enqueued(database_url: str, url: str) -> None:
    check_url(url, ())
    async with outbox_of(database_url) as outbox:
        await outbox.create_canceled_task(await add_key(outbox.database), url)

        [delivery] = await outbox.deliveries()

        assert delivery.url == url


async def test_endpoints_get_the_event_types_they_chose_of_their_own_key(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key, other = await add_key(outbox.database), await add_key(outbox.database, "other")
        everything = await outbox.add_endpoint(key, URL)
        canceled = await outbox.add_endpoint(key, URL, event_types=[WebhookType.task_canceled])
        await outbox.add_endpoint(key, URL, event_types=[WebhookType.task_failed])
        await outbox.add_endpoint(key, URL, disabled=True)
        await outbox.add_endpoint(other, URL)
        await outbox.create_canceled_task(key)

        recipients = {delivery.endpoint_id for delivery in await outbox.deliveries()}

        assert recipients == {everything.id, canceled.id}


async def test_rolled_back_transition_enqueues_nothing(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, URL)
        task = await outbox.create_task(key, URL)

        async def fail_in_the_middle() -> None:
            async with outbox.database.writes.begin() as session:
                locked = await lock_task(session, task.id)
                assert locked is not None
                outbox.services.lifecycle.cancel(session, locked, await outbox.database.now(session))
                raise LookupError

        with pytest.raises(LookupError):
            await fail_in_the_middle()

        assert not await outbox.deliveries()


@pytest.mark.parametrize(("endpoints", "queries", "deliveries"), [(0, 1, 0), (3, 1, 9)])
async def test_endpoints_are_looked_up_once_for_a_commit_of_many_events(
    database_url: str, endpoints: int, queries: int, deliveries: int
) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        for _ in range(endpoints):
            await outbox.add_endpoint(key, URL)
        task = await outbox.create_task(key)
        statements: list[str] = []
        engine = outbox.database.writes.kw["bind"].sync_engine
        event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

        await report(outbox, task, Report(Stage.running, "u1", clips=(CLIP,)), Report(Stage.succeeded, "u1"))

        assert len([text for text in statements if "FROM webhook_endpoints" in text]) == queries
        assert len(await outbox.deliveries()) == deliveries


async def test_deleting_a_task_deletes_its_deliveries_and_attempts(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, URL)
        task = await outbox.create_canceled_task(key, URL)
        await outbox.attempt_due()
        assert await outbox.attempts()

        async with outbox.database.writes.begin() as session:
            await session.delete(await lock_task(session, task.id))

        assert not await outbox.deliveries()
        assert not await outbox.attempts()
