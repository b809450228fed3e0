"""Headers that an owner adds to webhooks: which are taken, what is stored of them, and that receivers get them."""

import json
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import select

from app.health.secret_keys import check_secret_keys
from app.keyring import Keyring
from app.models import DeliveryAttempt, WebhookEndpoint
from app.webhooks.headers import HeadersLost, headers_of
from app.webhooks.schemas import EndpointUpdate
from tests.support.receivers import Connection, Reply, receiving
from tests.support.rows import add_key
from tests.support.settings import UNREACHABLE
from tests.webhooks.outbox import Outbox, outbox_of
from tests.webhooks.test_routes import ENDPOINTS, URL, calling

OLD, NEW = "the-old-secret-key-of-the-service", "the-new-secret-key-of-the-service"
TOKEN = "Bearer 4f7a90c2 and more"
HEADERS = {"Authorization": TOKEN, "x-tenant": "blue"}
SCHEDULE: dict[str, Any] = {"webhook_schedule": "0,0,0,0"}


async def test_headers_are_named_and_never_shown(database_url: str) -> None:
    async with calling(database_url) as callers:
        made = await callers.http.post(ENDPOINTS, json={"url": URL, "headers": HEADERS})
        path = f"{ENDPOINTS}/{made.json()['id']}"
        answers = [made, await callers.http.get(path), await callers.http.get(ENDPOINTS)]
        answers.append(await callers.http.patch(path, json={"description": "billing"}))
        assert [answer.json().get("headers") for answer in (answers[0], answers[1], answers[3])] == 3 * [[*HEADERS]]
        assert not any(TOKEN in answer.text for answer in answers)

        changes: list[Any] = [{"X-Other": "1"}, {}, HEADERS, None]
        changed = [(await callers.http.patch(path, json={"headers": each})).json()["headers"] for each in changes]

        assert changed == [["X-Other"], [], [*HEADERS], []]


TAKEN = (
    *("webhook-id", "Webhook-Timestamp", "webhook-signature", "webhook-anything", "Content-Type", "content-length"),
    *("Content-Encoding", "Host", "Connection", "Keep-Alive", "Proxy-Authorization", "TE", "Trailer", "Upgrade"),
    *("Transfer-Encoding", "Expect", "User-Agent", "Accept-Encoding", "traceparent", "TraceState"),
)
NO_NAMES = ("", "two words", "colon:", "line\nbreak", "nul\0", "\u00fcmlaut", "x" * 101)
NO_VALUES = ("", " begins", "ends ", "line\r\nX-Other: 1", "nul\0", "tab\there", "\u00fc", "x" * 1025, 1, None, ["a"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_headers_that_no_request_could_carry_are_refused_by_name_and_reason(database_url: str) -> None:
    wrong: list[tuple[Any, str]] = [({name: "1"}, name) for name in (*TAKEN, *NO_NAMES)]
    wrong += [({"X-Value": value}, "X-Value") for value in NO_VALUES]
    async with calling(database_url) as callers:
        path = f"{ENDPOINTS}/{(await callers.endpoint(headers=HEADERS))['id']}"
        for headers, name in wrong:
            for answer in (
                await callers.http.post(ENDPOINTS, json={"url": URL, "headers": headers}),
                await callers.http.patch(path, json={"headers": headers}),
            ):
                assert answer.status_code == 422, headers
                [error] = answer.json()["errors"]
                assert unquote(error["pointer"]) == f"#/headers/{name}" or len(name) > 100
                assert error["detail"]
        others: list[Any] = [
            {f"X-{number}": "1" for number in range(17)},
            {"X-Tenant": "1", "x-tenant": "2"},
            ["a"],
            "a",
        ]
        for headers in others:
            answer = await callers.http.patch(path, json={"headers": headers})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/headers")

        assert (await callers.http.get(path)).json()["headers"] == [*HEADERS]
        most = {f"{number:0>100}": "x" * 1024 for number in range(16)}
        assert (await callers.http.patch(path, json={"headers": most})).json()["headers"] == [*most]


async def test_each_attempt_carries_the_headers_of_then_with_the_same_id_and_bytes(database_url: str) -> None:
    async with outbox_of(database_url, **SCHEDULE) as outbox, receiving(500) as receiver, receiving() as own:
        key = await add_key(outbox.database)
        endpoint = await outbox.add_endpoint(key, receiver.url, headers=HEADERS)
        await outbox.create_canceled_task(key, own.url)
        await outbox.attempt_due()
        await _change(outbox, endpoint, {"Authorization": "Basic xyz"})
        await outbox.attempt_due()
        await _change(outbox, endpoint, {})
        await outbox.attempt_due()

        sent = [{name: got.headers.get(name) for name in ("authorization", "x-tenant")} for got in receiver.requests]
        assert sent == [
            {"authorization": TOKEN, "x-tenant": "blue"},
            {"authorization": "Basic xyz", "x-tenant": None},
            {"authorization": None, "x-tenant": None},
        ]
        assert "x-tenant: blue\r\n" in receiver.requests[0].head
        assert len({(got.webhook_id, got.body) for got in receiver.requests}) == 1
        [got] = own.requests
        assert not {"authorization", "x-tenant"} & {*got.headers}


async def test_receiver_that_repeats_headers_makes_none_of_them_readable(database_url: str) -> None:
    secret, quoted = "canary-credential", 'canary "quoted" value'

    async def repeat(connection: Connection) -> None:
        got = connection.receiver.requests[-1]
        await Reply(500, body=json.dumps([got.headers, got.headers["authorization"].split()[1]]).encode())(connection)

    async with outbox_of(database_url, **SCHEDULE) as outbox, receiving(repeat) as receiver:
        key = await add_key(outbox.database)
        headers = {"Authorization": f"Bearer {secret}", "X-Quoted": quoted, "X-Tenant": "blue"}
        await outbox.add_endpoint(key, receiver.url, headers=headers)
        await outbox.create_canceled_task(key)
        await outbox.attempt_due()
        async with outbox.database.reads() as session:
            [response] = (await session.scalars(select(DeliveryAttempt.response))).all()

    assert response is not None
    assert "canary" not in response
    # The rest is there, and so is what is too short for a secret.
    assert '"x-tenant": "blue"' in response
    assert response.endswith(', "***"]')


async def test_headers_are_stored_encrypted_and_for_their_endpoint_alone(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key, keyring = await add_key(outbox.database), outbox.services.keyring
        ids = [(await outbox.add_endpoint(key, UNREACHABLE, headers=HEADERS)).id for _ in range(2)]
        async with outbox.database.writes.begin() as session:
            rows = (await session.execute(select(WebhookEndpoint.__table__))).all()
            first, second = [await session.get_one(WebhookEndpoint, each) for each in ids]
            assert first.headers
            assert second.headers
            assert not any(value in repr(rows) for value in (TOKEN, "4f7a90c2", "blue"))
            assert headers_of(keyring, first) == HEADERS
            first.headers, second.headers = second.headers, first.headers

            for endpoint in (first, second):
                with pytest.raises(HeadersLost):
                    headers_of(keyring, endpoint)
            second.headers = first.headers[:-1] + bytes([first.headers[-1] ^ 1])
            with pytest.raises(HeadersLost):
                headers_of(keyring, second)


async def test_headers_outlive_a_rotation_and_nothing_is_sent_without_them_once_their_key_is_lost(
    database_url: str,
) -> None:
    async with outbox_of(database_url, secret_keys=OLD, **SCHEDULE) as outbox, receiving(500) as receiver:
        key, keyring = await add_key(outbox.database), outbox.services.keyring
        endpoint = await outbox.add_endpoint(key, receiver.url, headers=HEADERS)
        await outbox.create_canceled_task(key)

        keyring.become(Keyring(NEW, OLD))
        await outbox.attempt_due()
        assert (await check_secret_keys(outbox.database, keyring)).status == "ok"
        keyring.become(Keyring(NEW))
        await outbox.attempt_due()

        assert [got.headers["authorization"] for got in receiver.requests] == [TOKEN]
        assert (await outbox.attempts())[-1].error == (
            "the endpoint's headers cannot be decrypted any more: set them again"
        )
        told = await check_secret_keys(outbox.database, keyring)
        assert told.status == "degraded"
        assert "the headers of 1 webhook endpoints were encrypted with a key that SOUNDPOST_SECRET_KEYS has lost" in (
            told.detail
        )

        await _change(outbox, endpoint, HEADERS)
        receiver.answer(204)
        await outbox.attempt_due()
        assert [got.headers["authorization"] for got in receiver.requests] == [TOKEN, TOKEN]
        assert (await check_secret_keys(outbox.database, keyring)).status == "ok"


async def test_what_is_claimed_shows_no_header_and_no_secret_where_it_is_printed(database_url: str) -> None:
    async with outbox_of(database_url) as outbox:
        key = await add_key(outbox.database)
        await outbox.add_endpoint(key, UNREACHABLE, headers=HEADERS)
        await outbox.create_canceled_task(key)

        [item] = (await outbox.loop.claim(1)).items

        assert item.headers == HEADERS
        assert not any(text in repr(item) for text in (TOKEN, "blue", repr(item.secrets[0])))


async def _change(outbox: Outbox, endpoint: WebhookEndpoint, headers: dict[str, str]) -> None:
    async with outbox.database.transaction() as (session, now):
        found = await session.get_one(WebhookEndpoint, endpoint.id)
        body = EndpointUpdate.model_validate({"headers": headers})
        await outbox.services.webhook_lifecycle.update_endpoint(session, found, body, now)
