"""PUT with an id of the caller's own: one id and one order make one task, at any replica and however late."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select, text

from app.auth.rate_limit import spend
from app.models import Task
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.idempotency import fingerprint
from app.tasks.queue.insertion import Order
from tests.budgets.accounts import give, key_of
from tests.support.api import cancel
from tests.support.sandbox import submits_at
from tests.support.service import Service, client_with_key, serve, serve_with_sandbox
from tests.support.wait import eventually

ORDER: dict[str, Any] = {"prompt": "soft rain"}
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
HEX = "7c9e6679f4a14c53b1de3e5bd3a0c0de"


async def test_first_put_makes_the_task_and_the_next_ones_answer_with_it(service: Service) -> None:
    first, again = [await _put(service.client, HEX) for _ in range(2)]
    await cancel(service.client, first.json())
    afterwards = await _put(service.client, HEX)

    assert (first.status_code, first.json()["id"], first.json()["status"]) == (202, HEX, "queued")
    assert first.headers["location"] == f"/v1/tasks/{HEX}"
    assert int(first.headers["retry-after"]) >= 1
    assert first.headers["cache-control"] == "no-store"
    assert (again.status_code, again.content) == (202, first.content)
    assert [each.headers.get("idempotency-replayed") for each in (first, again, afterwards)] == [None, "true", "true"]
    assert (afterwards.status_code, afterwards.json()["status"]) == (200, "canceled")


@pytest.mark.parametrize(
    "id_",
    [
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "C232AB00-9414-11EC-B3C8-9E6BDECED846",
        "919108f752d133205bacf847db4148a8",
        "0" * 32,
    ],
)
async def test_id_is_a_uuid_of_any_version_in_any_spelling(service: Service, id_: str) -> None:
    made = await _put(service.client, id_)
    again = await _put(service.client, id_.replace("-", "").lower())

    assert (made.status_code, made.json()["id"]) == (202, id_.replace("-", "").lower())
    assert again.json() == made.json()
    assert await _count(service) == 1


@pytest.mark.parametrize("id_", ["rain-1", HEX[1:], HEX + "0", f"%7B{HEX}%7D", "%F0%9F%98%80", "0x" + HEX[2:]])
async def test_what_is_no_uuid_is_refused_where_it_is_wrong(service: Service, id_: str) -> None:
    refused = await _put(service.client, id_)

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/path/task_id")
    assert await _count(service) == 0


async def test_bodies_are_compared_by_meaning(service: Service) -> None:
    await _put(service.client, HEX)
    alike: dict[str, Any] = {"sound_key": "Any", "metadata": {}, "model": "V5", "sound_tempo": None, **ORDER}
    others: list[dict[str, Any]] = [{"prompt": "hard rain"}, {**ORDER, "model": "V5_5"}, {**ORDER, "priority": "low"}]

    same = await _put(service.client, HEX, alike)
    refused = [await _put(service.client, HEX, other) for other in others]

    assert (same.status_code, same.json()["id"]) == (202, HEX)
    assert [(each.status_code, each.json()["type"]) for each in refused] == 3 * [
        (422, "/problems/idempotency-key-reused")
    ]
    assert "new id" in refused[0].json()["detail"]


async def test_id_of_another_key_is_taken_whoever_asks(service: Service) -> None:
    await _put(service.client, HEX)
    mine = await service.create_task()
    async with (
        await client_with_key(service, "stranger") as stranger,
        await client_with_key(service, "admin", is_admin=True) as admin,
    ):
        foreign = [await _put(each, HEX) for each in (stranger, admin)]
    # An id that this service has made is no id of an order, not even of its own.
    own = await _put(service.client, mine)

    taken = [*foreign, own]
    assert [(each.status_code, each.json()["type"]) for each in taken] == 3 * [(409, "/problems/id-taken")]
    assert "prompt" not in foreign[0].text
    assert await _count(service) == 2


async def test_id_of_a_deleted_task_makes_no_second_one(service: Service) -> None:
    made = await _put(service.client, HEX)
    await cancel(service.client, made.json())
    await service.client.delete(f"/v1/tasks/{HEX}")

    again = [await _put(service.client, HEX, body) for body in (ORDER, {"prompt": "hard rain"})]
    async with await client_with_key(service, "stranger") as stranger:
        foreign = await _put(stranger, HEX)

    assert {(each.status_code, each.json()["type"]) for each in again} == {(410, "/problems/task-deleted")}
    assert "new id" in again[0].json()["detail"]
    assert (foreign.status_code, foreign.json()["type"]) == (409, "/problems/id-taken")
    assert await _count(service) == 0


async def test_idempotency_key_beside_the_id_is_refused(service: Service) -> None:
    refused = await _put(service.client, HEX, headers={"Idempotency-Key": "k"})

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/header/Idempotency-Key")
    assert await _count(service) == 0


async def test_put_waits_as_it_prefers(service: Service) -> None:
    made = await _put(service.client, HEX)
    waiting = asyncio.create_task(_put(service.client, HEX, headers={"Prefer": "wait=20"}))
    await asyncio.wait([waiting], timeout=0.1)
    await cancel(service.client, made.json())

    answer = await waiting

    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert answer.headers["preference-applied"] == "wait=20"


async def test_replayed_put_does_not_count_against_the_rate(database_url: str) -> None:
    async with serve(database_url, key_rate="1/600") as service:
        answers = [await _put(service.client, HEX) for _ in range(3)]
        other = await _put(service.client, uuid4().hex)

    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert answers[-1].headers["ratelimit"].startswith('"default";r=0')
    assert other.status_code == 429


async def test_refused_put_leaves_its_id_free(service: Service) -> None:
    refused = await _put(service.client, HEX, {**ORDER, "model": "V9"})

    assert (refused.status_code, (await _put(service.client, HEX)).status_code) == (422, 202)


async def test_ten_puts_of_one_id_at_three_replicas_are_one_task_and_one_post(
    database_url: str, tmp_path: Path
) -> None:
    async with _replicas(database_url, tmp_path) as (first, *others):
        clients = [first.client, *(each.client for each in others)]
        answers = await asyncio.gather(*(_put(clients[number % 3], HEX) for number in range(10)))
        done = await first.until(HEX, lambda task: bool(task["completed_at"]))
        submits = await submits_at(str(first.upstream.base_url))
        count = await _count(first)

    assert {answer.status_code for answer in answers} <= {200, 202}
    assert {answer.json()["id"] for answer in answers} == {HEX}
    assert len({answer.json()["created_at"] for answer in answers}) == 1
    assert Counter(answer.headers.get("idempotency-replayed") for answer in answers) == {None: 1, "true": 9}
    assert (done["status"], count, len(submits)) == ("succeeded", 1, 1)


async def test_of_two_keys_with_one_id_at_once_one_wins(database_url: str, tmp_path: Path) -> None:
    async with _replicas(database_url, tmp_path) as (first, second, _):
        async with await client_with_key(second, "rival") as rival:
            for _ in range(5):
                id_ = uuid4().hex
                clients = (first.client, rival, first.client, rival)
                answers = await asyncio.gather(*(_put(client, id_) for client in clients))
                won, lost = [answers[0], answers[2]], [answers[1], answers[3]]
                if answers[0].status_code == 409:
                    won, lost = lost, won
                assert {each.status_code for each in won} <= {200, 202}
                assert {(each.status_code, each.json()["type"]) for each in lost} == {(409, "/problems/id-taken")}
        assert await _count(first) == 5


@pytest.mark.parametrize(("rate", "credits_"), [(None, None), (None, 2.5), ("1/600", None)])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_id_that_another_replica_stores_meanwhile_is_found_after_all(
    database_url: str, rate: str | None, credits_: float | None
) -> None:
    async with serve(database_url, key_rate=rate) as service:
        owner, settings, body = await key_of(service), service.services.settings, TaskCreate.model_validate(ORDER)
        async with service.database.reads() as session:
            now = await service.database.now(session)
        await give(service.database, owner, credits_, now=now)
        async with service.database.transaction() as (session, now):
            order = Order(owner, body, task_id=HEX, digest=fingerprint(body, "V5"))
            await spend(session, owner, settings.key_rate, now)
            await service.services.lifecycle.create(session, [order], now)
            putting = asyncio.create_task(_put(service.client, HEX))

            async def is_waiting() -> bool:
                async with service.database.reads() as reading:
                    return bool((await reading.execute(text(WAITING))).scalar())

            await eventually(is_waiting)

        answer, others = await putting, await _put(service.client, uuid4().hex)

        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (202, "true")
        assert others.status_code == (402 if credits_ else 429 if rate else 202)
        assert await _count(service) == 1 + (others.status_code == 202)


@asynccontextmanager
async def _replicas(database_url: str, folder: Path) -> AsyncIterator[list[Service]]:
    """Three services on one database, of which the first submits."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve_with_sandbox(database_url, folder))
        others = [await stack.enter_async_context(serve(database_url)) for _ in range(2)]
        yield [first, *others]


async def _put(
    client: httpx.AsyncClient, id_: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await client.put(f"/v1/tasks/{id_}", json=ORDER if body is None else body, headers=headers)


async def _count(service: Service) -> int | None:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(Task))
