"""How many sounds one key may order."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from app.tasks.queue.estimates import retry_after
from tests.support.api import create_task
from tests.support.clock import Clock
from tests.support.service import Service, serve

ORDER = {"prompt": "soft rain"}
DROP_IN = {"prompt": "soft rain", "model": "V5"}


@pytest.fixture
async def limited(database_url: str) -> AsyncIterator[Service]:
    """A service where a key may order three sounds in a minute."""
    async with serve(database_url, key_rate="3/60") as service:
        yield service


async def test_submits_are_counted_down_and_then_refused(limited: Service) -> None:
    answers = [await limited.client.post("/v1/tasks", json=ORDER) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        f'"default";r={left}' for left in (2, 1, 0, 0)
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"default";q=3;w=60'}
    assert answers[3].json()["type"] == "/problems/too-many-requests"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 60
    assert len((await limited.client.get("/v1/tasks")).json()["items"]) == 3


async def test_replays_and_refused_requests_do_not_count(limited: Service) -> None:
    key = {"Idempotency-Key": "order-1"}

    first, *replays = [await limited.client.post("/v1/tasks", json=ORDER, headers=key) for _ in range(5)]
    refused = await limited.client.post("/v1/tasks", json={"prompt": ""})

    assert {answer.json()["id"] for answer in replays} == {first.json()["id"]}
    assert {answer.headers["ratelimit"].partition(";t=")[0] for answer in [first, *replays]} == {'"default";r=2'}
    assert refused.status_code == 422
    await create_task(limited.client)
    await create_task(limited.client)
    assert (await limited.client.post("/v1/tasks", json=ORDER, headers=key)).status_code == 202


async def test_deleting_tasks_wins_nothing_back(limited: Service) -> None:
    for _ in range(3):
        path = f"/v1/tasks/{(await create_task(limited.client))['id']}"
        await limited.client.post(f"{path}/cancel")
        assert (await limited.client.delete(path)).status_code == 204

    assert (await limited.client.post("/v1/tasks", json=ORDER)).status_code == 429


async def test_both_surfaces_share_one_limit_and_the_vendors_clients_read_405(limited: Service) -> None:
    for _ in range(2):
        await create_task(limited.client)

    taken, refused = [await limited.client.post("/api/v1/generate/sounds", json=DROP_IN) for _ in range(2)]

    assert (taken.json()["code"], taken.headers["ratelimit"][:13]) == (200, '"default";r=0')
    assert (refused.status_code, refused.json()["code"], refused.json()["data"]) == (200, 405, None)
    assert int(refused.headers["retry-after"]) >= 1


async def test_window_slides(limited: Service) -> None:
    clock = Clock()
    limited.database.now = clock

    async def submit_after(seconds: float) -> int:
        clock.advance(seconds=seconds)
        return (await limited.client.post("/v1/tasks", json=ORDER)).status_code

    assert [await submit_after(seconds) for seconds in (0, 20, 20, 19, 1, 19, 1)] == [
        *(202, 202, 202),
        *(429, 202),
        *(429, 202),
    ]


async def test_without_a_limit_nothing_is_said_of_it(service: Service) -> None:
    answer = await service.client.post("/v1/tasks", json=ORDER)

    assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)


async def test_limit_holds_across_replicas(limited: Service) -> None:
    async with serve(limited.database.url, key_rate="3/60") as replica:
        submits = [client.post("/v1/tasks", json=ORDER) for client in (limited.client, replica.client) * 8]
        answers: list[httpx.Response] = await asyncio.gather(*submits)

    assert Counter(answer.status_code for answer in answers) == {202: 3, 429: 13}


def test_callers_come_back_when_half_of_the_sounds_are_done() -> None:
    assert retry_after([]) == 5
    assert retry_after([timedelta(seconds=s) for s in (3, 100, 20.2)]) == 21
    assert retry_after([timedelta(milliseconds=5)]) == 1
    assert retry_after([timedelta(hours=5)]) == 300
