"""The routes of webhook endpoints, secrets and deliveries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from jsonschema_rs import validate
from sqlalchemy import update

from app.auth.configured_keys import insert_configured_keys
from app.main import create_app
from app.models import Delivery, DeliveryAttempt, WebhookEndpoint
from app.web.pagination import encode_cursor
from tests.support.api import cancel, client_of, create_task
from tests.support.clock import MORNING
from tests.support.receivers import Receiver, Reply, receiving, verifies
from tests.support.settings import KEY, OTHER_KEY, UNREACHABLE
from tests.support.wait import eventually
from tests.webhooks.outbox import Outbox, outbox_of

ENDPOINTS = "/v1/webhook-endpoints"
URL = f"{UNREACHABLE}/hook"


@dataclass
class Callers:
    """Two callers of one service, and its outbox."""

    http: httpx.AsyncClient
    stranger: httpx.AsyncClient
    outbox: Outbox
    openapi: dict[str, Any]

    async def endpoint(self, url: str = URL, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post(ENDPOINTS, json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        endpoint: dict[str, Any] = answer.json()
        return endpoint

    async def canceled_task(self, **fields: Any) -> str:
        """The shortest way to a final event."""
        task = await create_task(self.http, **fields)
        await cancel(self.http, task)
        return str(task["id"])

    async def deliveries(self, **filters: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.http.get("/v1/deliveries", params=filters)).json()["items"]
        return items


@asynccontextmanager
async def calling(database_url: str, **settings: Any) -> AsyncIterator[Callers]:
    async with outbox_of(database_url, **settings) as outbox:
        await insert_configured_keys(outbox.database, f"mine:{KEY},other:{OTHER_KEY}")
        app = create_app(outbox.services, runs_workers=False)
        # Nothing here needs a server or the lifespan of the application.
        options = {"transport": httpx.ASGITransport(app)}
        async with (
            client_of("http://soundpost", KEY, **options) as http,
            client_of("http://soundpost", OTHER_KEY, **options) as stranger,
        ):
            yield Callers(http, stranger, outbox, app.openapi())


async def test_endpoint_is_created_read_updated_listed_and_deleted(database_url: str) -> None:
    async with calling(database_url) as callers:
        http = callers.http
        made = await callers.endpoint(event_types=["task.succeeded"], description="billing")
        path = f"{ENDPOINTS}/{made['id']}"
        assert (made["url"], made["event_types"], made["disabled"]) == (URL, ["task.succeeded"], False)
        assert (await http.get(path)).json() == made

        changed = (await http.patch(path, json={"disabled": True, "event_types": None})).json()

        assert (changed["disabled"], changed["disabled_by"], changed["event_types"]) == (True, "owner", None)
        assert (changed["url"], changed["description"]) == (URL, "billing")
        assert (await http.get(ENDPOINTS)).json()["items"] == [changed]
        assert (await http.patch(path, json={"disabled": False})).json()["disabled_at"] is None
        assert (await http.delete(path)).status_code == 204
        assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/url"),
        ({"url": "ftp://example.com/"}, "#/url"),
        ({"url": "http://10.0.0.1/"}, "#/url"),
        ({"url": "http://0xa.1/"}, "#/url"),
        ({"url": "http://user:secret@example.com/"}, "#/url"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, "#/url"),
        ({"url": URL, "event_types": []}, "#/event_types"),
        ({"url": URL, "event_types": ["task.created"]}, "#/event_types/0"),
        ({"url": URL, "disabled": 1}, "#/disabled"),
        ({"url": URL, "secret": "mine"}, "#/secret"),
        ({"url": URL, "description": "a\0b"}, "#/description"),
    ],
)
async def test_invalid_endpoint_is_422_with_a_pointer(database_url: str, body: dict[str, Any], pointer: str) -> None:
    async with calling(database_url) as callers:
        answer = await callers.http.post(ENDPOINTS, json=body)

        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_key_has_at_most_a_hundred_endpoints(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.webhooks.lifecycle.MAX_ENDPOINTS", 3)
    async with calling(database_url) as callers:
        answers = await asyncio.gather(*(callers.http.post(ENDPOINTS, json={"url": URL}) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 201, 201, 409, 409]
        refused = next(answer.json() for answer in answers if answer.status_code == 409)
        assert refused["type"] == "/problems/too-many-endpoints"
        assert (await callers.stranger.post(ENDPOINTS, json={"url": URL})).status_code == 201

        [endpoint, *_] = (await callers.http.get(ENDPOINTS)).json()["items"]
        await callers.http.delete(f"{ENDPOINTS}/{endpoint['id']}")
        assert (await callers.http.post(ENDPOINTS, json={"url": URL})).status_code == 201


@pytest.mark.parametrize("url", ["http://localhost.localdomain.:99999/", "http://192.168.1.1/hook", "nonsense", ""])
async def test_task_with_a_forbidden_webhook_url_is_422_and_not_stored(database_url: str, url: str) -> None:
    async with calling(database_url) as callers:
        answer = await callers.http.post("/v1/tasks", json={"prompt": "rain", "webhook_url": url})

        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["#/webhook_url"]
        assert (await callers.http.get("/v1/tasks")).json()["items"] == []


async def test_new_url_is_checked_and_applies_to_pending_deliveries(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        path = f"{ENDPOINTS}/{(await callers.endpoint())['id']}"
        await callers.canceled_task()

        refused = await callers.http.patch(path, json={"url": "http://10.0.0.1/"})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/url")
        await callers.http.patch(path, json={"url": receiver.url})
        await callers.outbox.attempt_due()

        assert [delivery["url"] for delivery in await callers.deliveries()] == [receiver.url]
        assert len(receiver.requests) == 1


async def test_rows_of_another_key_are_indistinguishable_from_absent_ones(database_url: str) -> None:
    async with calling(database_url) as callers:
        endpoint = await callers.endpoint()
        await callers.canceled_task()
        [delivery] = await callers.deliveries()
        since = {"since": "2026-01-01T00:00:00Z"}
        calls: list[tuple[str, str, str, dict[str, Any] | None]] = [
            ("GET", ENDPOINTS, endpoint["id"], None),
            ("PATCH", ENDPOINTS, endpoint["id"], {"disabled": True}),
            ("DELETE", ENDPOINTS, endpoint["id"], None),
            ("GET", ENDPOINTS, endpoint["id"] + "/secret", None),
            ("POST", ENDPOINTS, endpoint["id"] + "/rotate-secret", None),
            ("POST", ENDPOINTS, endpoint["id"] + "/test", None),
            ("POST", ENDPOINTS, endpoint["id"] + "/recover", since),
            ("GET", "/v1/deliveries", delivery["id"] + "/attempts", None),
            ("POST", "/v1/deliveries", delivery["id"] + "/resend", None),
        ]

        for method, prefix, rest, body in calls:
            owned = await callers.stranger.request(method, f"{prefix}/{rest}", json=body)
            unknown = await callers.http.request(method, f"{prefix}/{'0' * 32}{rest[32:]}", json=body)
            assert (owned.status_code, owned.content) == (404, unknown.content), (method, rest)
        assert (await callers.stranger.get(ENDPOINTS)).json()["items"] == []
        assert (await callers.stranger.get("/v1/deliveries")).json()["items"] == []


async def test_next_page_starts_after_the_previous_one(database_url: str) -> None:
    async with calling(database_url) as callers:
        endpoints = [await callers.endpoint() for _ in range(5)]
        await callers.canceled_task()

        for path, ids in (
            (ENDPOINTS, [endpoint["id"] for endpoint in endpoints]),
            ("/v1/deliveries", [delivery["id"] for delivery in await callers.deliveries()]),
        ):
            seen, cursor = [], None
            while True:
                asked = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
                answer = await callers.http.get(path, params=asked)
                page = answer.json()
                seen += [item["id"] for item in page["items"]]
                cursor = page["next_cursor"]
                assert ("link" in answer.headers) == (cursor is not None)
                if cursor is None:
                    break
            assert seen == ids
            assert len(seen) == 5


async def test_endpoints_are_paged_in_the_order_of_the_databases_clock(database_url: str) -> None:
    async with calling(database_url) as callers:
        paged, cursor = [], ""
        for number in (3, 1, 2):
            made = await callers.endpoint(description=str(number))
            await _give_id(callers, WebhookEndpoint, made["id"], number)
            page = (await callers.http.get(f"{ENDPOINTS}?limit=1{cursor}")).json()
            paged += [item["description"] for item in page["items"]]
            # Of a page that is the last one so far, the next begins where it would have ended.
            path, position = ENDPOINTS, (page["items"][-1]["created_at"], page["items"][-1]["id"])
            cursor = f"&cursor={encode_cursor(path, *position)}"

        assert paged == ["3", "1", "2"]


async def test_deliveries_that_come_while_a_reader_pages_are_neither_repeated_nor_take_the_place_of_others(
    database_url: str,
) -> None:
    async with calling(database_url) as callers:
        await callers.endpoint()
        first = [await _delivery(callers, number) for number in (5, 9, 7, 2)]
        seen, cursor = [], ""
        for number in (6, 1, 8, 3):
            page = (await callers.http.get(f"/v1/deliveries?limit=1{cursor}")).json()
            seen += [item["id"] for item in page["items"]]
            cursor = f"&cursor={page['next_cursor']}"
            # By the id of a replica whose clock is before or behind that of others.
            await _delivery(callers, number)
        rest = (await callers.http.get(f"/v1/deliveries?{cursor[1:]}")).json()["items"]
        seen += [item["id"] for item in rest]

        assert len(seen) == len(set(seen))
        assert set(first) <= set(seen)


async def test_deliveries_are_filtered_by_status_endpoint_and_task(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await callers.endpoint()
        task = await callers.canceled_task(webhook_url=receiver.url)
        await callers.outbox.attempt_due()
        other = await callers.canceled_task()

        def ids(deliveries: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
            return [(delivery["task_id"], delivery["endpoint_id"]) for delivery in deliveries]

        assert ids(await callers.deliveries(status="delivered")) == [(task, None)]
        assert ids(await callers.deliveries(endpoint_id=endpoint["id"])) == [
            (other, endpoint["id"]),
            (task, endpoint["id"]),
        ]
        assert ids(await callers.deliveries(task_id=other)) == [(other, endpoint["id"])]
        assert (await callers.http.get("/v1/deliveries", params={"status": "lost"})).status_code == 422
        assert (await callers.http.get("/v1/deliveries", params={"cursor": "nonsense"})).status_code == 422


async def test_attempts_list_status_response_and_error(database_url: str) -> None:
    async with calling(database_url, webhook_schedule="0,0") as callers, receiving(Reply(500, body=b"no")) as receiver:
        await callers.canceled_task(webhook_url=receiver.url)
        await callers.outbox.attempt_due()
        [delivery] = await callers.deliveries()
        assert (delivery["status"], delivery["attempts"]) == ("pending", 1)
        assert delivery["next_attempt_at"] is not None
        await callers.outbox.attempt_due()

        [delivery] = await callers.deliveries()
        attempts = (await callers.http.get(f"/v1/deliveries/{delivery['id']}/attempts")).json()["items"]

        assert (delivery["status"], delivery["attempts"], delivery["next_attempt_at"]) == ("given_up", 2, None)
        assert [(a["status_code"], a["response"], a["error"]) for a in attempts] == [(500, "no", None)] * 2
        assert attempts[0].keys() == {"attempted_at", "duration_ms", "status_code", "error", "response"}


async def test_resending_sends_the_same_id_and_bytes_whatever_the_status(database_url: str) -> None:
    async with calling(database_url, webhook_schedule="0") as callers, receiving(500, 204) as receiver:
        await callers.canceled_task(webhook_url=receiver.url)
        for status in ("given_up", "delivered", "delivered"):
            await callers.outbox.attempt_due()
            [delivery] = await callers.deliveries()
            assert delivery["status"] == status
            again = await callers.http.post(f"/v1/deliveries/{delivery['id']}/resend")
            assert (again.status_code, again.json()["status"], again.json()["id"]) == (202, "pending", delivery["id"])

        await callers.outbox.attempt_due()

        assert len(receiver.requests) == 4
        assert len({(got.webhook_id, got.body) for got in receiver.requests}) == 1
        assert (await callers.deliveries())[0]["attempts"] == 4


async def test_attempts_of_replicas_whose_clocks_differ_are_paged_by_time(database_url: str) -> None:
    async with calling(database_url) as callers:
        await callers.canceled_task(webhook_url="https://receiver.example/")
        [delivery] = await callers.deliveries()
        ids = ["f" * 32, "0" * 32, "8" * 32]
        async with callers.outbox.database.writes.begin() as session:
            for number, attempt_id in enumerate(ids):
                at = MORNING + timedelta(minutes=number)
                attempt = DeliveryAttempt(
                    id=attempt_id, delivery_id=delivery["id"], attempted_at=at, duration_ms=number
                )
                session.add(attempt)

        durations, path = [], f"/v1/deliveries/{delivery['id']}/attempts?limit=1"
        while path:
            response = await callers.http.get(path)
            durations += [attempt["duration_ms"] for attempt in response.json()["items"]]
            path = response.links.get("next", {}).get("url", "")

        assert durations == [0, 1, 2]


async def test_resending_during_an_attempt_starts_no_second_one(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        await callers.canceled_task(webhook_url=receiver.url)
        claimed = await callers.outbox.loop.claim(10)
        [delivery] = await callers.deliveries()

        assert (await callers.http.post(f"/v1/deliveries/{delivery['id']}/resend")).status_code == 202

        assert await callers.outbox.attempt_due() == 0
        await callers.outbox.loop.work(claimed.items[0])
        assert (await callers.deliveries())[0]["status"] == "delivered"
        assert len(receiver.requests) == 1


async def test_recovery_makes_undelivered_deliveries_of_a_time_range_due(database_url: str) -> None:
    async with calling(database_url, webhook_schedule="0") as callers, receiving(204, 500) as receiver:
        endpoint = await callers.endpoint(receiver.url)
        path = f"{ENDPOINTS}/{endpoint['id']}/recover"
        before = datetime.now(UTC).isoformat()
        for _ in range(3):
            await callers.canceled_task()
            await callers.outbox.attempt_due()
        after = datetime.now(UTC).isoformat()
        receiver.answer(204)

        late = await callers.http.post(path, json={"since": after})
        recovered = await callers.http.post(path, json={"since": before, "until": after})

        assert (late.status_code, late.json()) == (202, {"deliveries": 0})
        assert recovered.json() == {"deliveries": 2}
        assert await callers.outbox.attempt_due() == 2
        assert {delivery["status"] for delivery in await callers.deliveries()} == {"delivered"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"since": 1700000000},
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"since": "1700000000"},
        {"since": "2026-01-01 00:00Z"},
        {"since": "2026-01-01T00:00:00Z", "until": "tomorrow"},
    ],
)
async def test_recovery_with_an_invalid_time_is_422(database_url: str, body: dict[str, Any]) -> None:
    async with calling(database_url) as callers:
        endpoint = await callers.endpoint()

        assert (await callers.http.post(f"{ENDPOINTS}/{endpoint['id']}/recover", json=body)).status_code == 422


async def test_test_webhook_is_sent_whatever_the_event_types(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await callers.endpoint(receiver.url, event_types=["task.failed"])

        answer = await callers.http.post(f"{ENDPOINTS}/{endpoint['id']}/test")
        await callers.outbox.attempt_due()

        assert answer.status_code == 202
        assert (answer.json()["event_type"], answer.json()["task_id"]) == ("webhook.test", None)
        assert receiver.requests[0].webhook_id == answer.json()["event_id"]


async def test_disabled_endpoint_gets_nothing_and_the_attempt_says_why(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await callers.endpoint(receiver.url, disabled=True)

        await callers.http.post(f"{ENDPOINTS}/{endpoint['id']}/test")
        await callers.outbox.attempt_due()

        [delivery] = await callers.deliveries()
        [attempt] = (await callers.http.get(f"/v1/deliveries/{delivery['id']}/attempts")).json()["items"]
        assert (delivery["status"], attempt["error"]) == ("given_up", "the endpoint is disabled")
        assert receiver.requests == []


async def test_secrets_are_read_and_rotated(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver:
        endpoint = await callers.endpoint(receiver.url)
        secret_path = f"{ENDPOINTS}/{endpoint['id']}/secret"
        rotate_path = f"{ENDPOINTS}/{endpoint['id']}/rotate-secret"
        for show, rotate, webhook_url in (
            (secret_path, rotate_path, None),
            ("/v1/webhook-secret", "/v1/webhook-secret/rotate", receiver.url),
        ):
            before = (await callers.http.get(show)).json()["secret"]
            rotated = await callers.http.post(rotate)
            after = rotated.json()["secret"]
            assert (rotated.status_code, rotated.headers["cache-control"]) == (200, "no-store")
            assert (await callers.http.get(show)).json() == {"secret": after}
            assert before != after
            await callers.canceled_task(**({"webhook_url": webhook_url} if webhook_url else {}))
            await callers.outbox.attempt_due()
            for got in receiver.requests:
                is_for_endpoint = verifies(after, got) and verifies(before, got)
                assert is_for_endpoint or webhook_url
        assert any(verifies(after, request) for request in receiver.requests[-2:])


async def test_readiness_names_endpoints_that_failures_disabled(database_url: str) -> None:
    async with calling(database_url) as callers, receiving(410) as receiver:
        endpoint = await callers.endpoint(receiver.url)
        await callers.endpoint(disabled=True)
        await callers.canceled_task()
        assert (await callers.http.get("/readyz")).json()["checks"]["webhooks"]["status"] == "ok"

        await callers.outbox.attempt_due()

        async def names_the_endpoint() -> bool:
            found = (await callers.http.get("/readyz")).json()["checks"]["webhooks"]
            assert found["status"] == "ok"
            return endpoint["id"] in found["detail"]

        await eventually(names_the_endpoint)


async def test_openapi_describes_every_webhook_that_is_sent(database_url: str) -> None:
    async with calling(database_url) as callers, receiving() as receiver, receiving(410) as gone:
        endpoint = await callers.endpoint(receiver.url)
        await callers.endpoint(gone.url, event_types=["task.canceled"])
        await callers.http.post(f"{ENDPOINTS}/{endpoint['id']}/test")
        await callers.canceled_task(webhook_url=receiver.url)
        while await callers.outbox.attempt_due():
            pass

        kinds = {described(callers.openapi, receiver, position) for position in range(len(receiver.requests))}

        assert kinds == {"webhook.test", "task.canceled", "endpoint.disabled"}
        callbacks = callers.openapi["paths"]["/v1/tasks"]["post"]["callbacks"]
        assert callbacks.keys() == {"task.succeeded", "task.failed", "task.canceled"}
        assert all(callback.keys() == {"{$request.body#/webhook_url}"} for callback in callbacks.values())


def described(openapi: dict[str, Any], receiver: Receiver, position: int) -> str:
    """Return which event this was, having held its body against the schema of that webhook."""
    got = receiver.requests[position]
    outbound: dict[str, Any] = httpx.Response(200, content=got.body).json()
    kind: str = outbound["type"]
    operation = openapi["webhooks"][kind]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validate({**schema, "components": openapi["components"]}, outbound)
    assert {parameter["name"] for parameter in operation["parameters"]} <= got.headers.keys()
    return kind


async def _delivery(callers: Callers, number: int) -> str:
    """Add a delivery with this number as its id; return the id."""
    await callers.canceled_task()
    newest = max(await callers.outbox.deliveries(), key=lambda delivery: delivery.created_at)
    return await _give_id(callers, Delivery, newest.id, number)


async def _give_id(callers: Callers, kind: type[Delivery | WebhookEndpoint], old: str, number: int) -> str:
    new = f"{number:032x}"
    async with callers.outbox.database.writes.begin() as session:
        await session.execute(update(kind).where(kind.id == old).values(id=new))
    return new
