"""Idempotency-Key: one key and one order make one task, however often and however fast they are sent."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.auth.callers import Caller
from app.database.engine import Database
from app.errors import InvalidRequest, TaskDeleted
from app.models import Task
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.idempotency import TTL, claim_key, read_key
from tests.support.clock import MORNING, Clock
from tests.support.rows import add_key, add_task
from tests.support.service import Service, services_of

ORDER = {"prompt": "soft rain"}


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("k", "k"),
        ('"k"', "k"),
        ("  k  ", "k"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('a"b', 'a"b'),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("x" * 255, "x" * 255),
        ('"' + "x" * 255 + '"', "x" * 255),
    ],
)
def test_key_may_be_quoted_or_bare(header: str, key: str) -> None:
    assert read_key([header]) == key


@pytest.mark.parametrize(
    "header", ["", " ", '""', '"', '"a', '"a"b', r'"a\b"', "x" * 256, "é", "a\tb", "\x7f", "\ud800"]
)
def test_key_that_cannot_be_stored_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_key([header])
    assert refused.value.errors[0]["pointer"] == "#/header/Idempotency-Key"


async def test_same_request_again_is_answered_with_the_same_task(service: Service) -> None:
    first = await _order(service, "k")
    again = await _order(service, '"k"')

    assert (first.status_code, first.headers.get("idempotency-replayed")) == (202, None)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (202, "true")
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]


async def test_replay_of_an_ended_task_is_a_200(service: Service) -> None:
    task_id = (await _order(service, "k")).json()["id"]
    await service.client.post(f"/v1/tasks/{task_id}/cancel")

    again = await _order(service, "k")

    assert (again.status_code, again.json()["status"]) == (200, "canceled")


async def test_bodies_are_compared_after_normalisation(service: Service) -> None:
    first = await _order(service, "k")
    meant_alike: dict[str, Any] = {"sound_key": "Any", "metadata": {}, "model": "V5", "sound_tempo": None, **ORDER}

    again = await service.client.post("/v1/tasks", json=meant_alike, headers={"Idempotency-Key": "k"})

    assert again.json()["id"] == first.json()["id"]


@pytest.mark.parametrize("other", [{"prompt": "hard rain"}, {**ORDER, "sound_loop": True}, {**ORDER, "model": "V5_5"}])
async def test_other_request_under_the_same_key_is_refused(service: Service, other: dict[str, Any]) -> None:
    await _order(service, "k")

    refused = await service.client.post("/v1/tasks", json=other, headers={"Idempotency-Key": "k"})

    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/idempotency-key-reused")


async def test_same_key_at_once_makes_one_task(service: Service) -> None:
    answers = await asyncio.gather(*(_order(service, "k") for _ in range(20)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert Counter(answer.headers.get("idempotency-replayed") for answer in answers) == {None: 1, "true": 19}
    assert await _tasks(service) == 1


async def test_refused_request_uses_up_no_key(service: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    refused = await service.client.post("/v1/tasks", json={**ORDER, "model": "V9"}, headers=headers)

    accepted = await _order(service, "k")

    assert (refused.status_code, accepted.status_code) == (422, 202)


async def test_keys_of_two_callers_are_two_keys(database: Database) -> None:
    mine, theirs = await add_key(database, "mine"), await add_key(database, "theirs")

    await _claim(database, mine, "print")

    assert await _claim(database, theirs, "another print") is None


async def test_key_is_stored_for_a_day(database_url: str) -> None:
    clock = Clock()
    database = Database(database_url, clock=clock)
    owner = await add_key(database)
    made = await _claim(database, owner, "print")

    clock.advance(seconds=TTL.total_seconds() - 1)
    on_the_day = await _claim(database, owner, "print")
    clock.advance(seconds=1)
    afterwards = await _claim(database, owner, "another print")
    renewed = await _claim(database, owner, "another print")
    await database.close()

    assert (made, afterwards) == (None, None)
    assert on_the_day is not None
    assert renewed not in (None, on_the_day)


async def test_key_of_a_deleted_task_creates_no_second_one(service: Service) -> None:
    first = (await _order(service, "k")).json()["id"]
    await service.client.post(f"/v1/tasks/{first}/cancel")
    await service.client.delete(f"/v1/tasks/{first}")

    again = [await _order(service, "k") for _ in range(2)]
    other = await service.client.post("/v1/tasks", json={"prompt": "hard rain"}, headers={"Idempotency-Key": "k"})

    assert {(each.status_code, each.json()["type"]) for each in again} == {(410, "/problems/task-deleted")}
    assert "new `Idempotency-Key`" in again[0].json()["detail"]
    assert other.status_code == 422
    assert await _tasks(service) == 0


async def test_key_of_a_deleted_task_is_free_after_a_day(database_url: str) -> None:
    clock = Clock()
    async with services_of(database_url, clock) as services:
        caller, order = Caller(await add_key(services.database), is_admin=False), TaskCreate.model_validate(ORDER)
        first = (await services.orders.place(caller, order, idempotency_key="k")).task
        await services.tasks.cancel(caller, first.id)
        await services.tasks.erase(caller, first.id)

        clock.advance(seconds=TTL.total_seconds() - 1)
        with pytest.raises(TaskDeleted):
            await services.orders.place(caller, order, idempotency_key="k")
        clock.advance(seconds=1)
        again = await services.orders.place(caller, order, idempotency_key="k")

    assert (again.is_replay, again.task.id == first.id) == (False, False)


async def _order(service: Service, key: str) -> httpx.Response:
    return await service.client.post("/v1/tasks", json=ORDER, headers={"Idempotency-Key": key})


async def _tasks(service: Service) -> int | None:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(Task))


async def _claim(database: Database, owner: str, fingerprint: str) -> str | None:
    """The id of the task that the key stands for already; makes one where there is none."""
    new = await add_task(database, owner, now=MORNING + timedelta(hours=1))
    async with database.writes.begin() as session:
        claimed = await claim_key(session, owner, "k", fingerprint, await database.now(session))
        if claimed.task is None:
            claimed.bind_to(new)
            return None
        return claimed.task.id
