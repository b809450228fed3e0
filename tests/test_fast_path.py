"""The fast path answers as the documented route does, with one statement, or leaves the request to that route."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import time_machine
from sqlalchemy import update

from app.enums import Charge, ErrorCode, TaskStatus
from app.fast_path import PAGE_SIZE
from app.models import Clip, Task
from app.tasks.clips import MAX_PAGE_WORDS
from tests.support.clock import MORNING
from tests.support.service import Service, client_with_key, serve
from tests.support.statements import Statement, recorded

S = TaskStatus
ERROR = {"error_code": ErrorCode.upstream_failed, "error_message": "no", "upstream_code": 501}
# Means the same as no such header, but takes the framework to read.
LONG_WAY = {"Accept": "application/json;q=0.9, text/plain;q=0.1"}
CASES: Mapping[str, Mapping[str, Any]] = {
    "queued": {"status": S.queued},
    "generating": {"status": S.generating, "upstream_task_id": "u1", "clips": 1},
    "succeeded": {"status": S.succeeded, "clips": 2, "labels": {"scene": "s\u00e9 7"}, "sound_tempo": 90},
    "failed": {"status": S.failed, "charge": Charge.refunded, **ERROR},
    "canceled": {"status": S.canceled, "webhook_url": "https://example.com/"},
}
PROMPT = {"prompt": "soft rain"}
# Headers that differ from one response to the next.
DIFFERENT = frozenset({"date", "content-length", "x-request-id"})
ORDERS: Mapping[str, str] = {
    "plain": json.dumps(PROMPT),
    "full": json.dumps(
        {**PROMPT, "metadata": {"a": "\u00fc"}, "sound_loop": True, "sound_tempo": 90, "sound_key": "Am"}
    ),
    "unknown model": json.dumps({**PROMPT, "model": "V0"}),
    "wrong type": json.dumps({**PROMPT, "sound_loop": "yes"}),
    "unknown field": json.dumps({**PROMPT, "prmpt": 1}),
    "refused receiver": json.dumps({**PROMPT, "webhook_url": "http://10.0.0.1/"}),
    "not an object": "[]",
    "not JSON": "{",
    "empty": "",
}


@pytest.mark.parametrize("case", CASES)
async def test_plain_read_is_answered_as_the_route_does_it(service: Service, case: str) -> None:
    task = await plant(service, **CASES[case])
    path = f"/v1/tasks/{task.id}"
    known = {"If-None-Match": f'W/"{task.version}"'}

    with recorded(service.database) as statements:
        short, short_known = await service.client.get(path), await service.client.get(path, headers=known)
    long = await service.client.get(path, headers=LONG_WAY)
    long_known = await service.client.get(path, headers={**LONG_WAY, **known})

    assert is_of_fast_path(statements[0])
    assert shown(short) == shown(long)
    assert shown(short_known) == shown(long_known)
    assert (short.status_code, short_known.status_code) == (200, 304)
    assert len(short.json()["clips"]) == CASES[case].get("clips", 0)


async def test_plain_read_is_one_statement(service: Service) -> None:
    task = await plant(service, S.succeeded, clips=2)

    with recorded(service.database) as statements:
        (await service.client.get(f"/v1/tasks/{task.id}")).raise_for_status()

    assert [is_of_fast_path(statement) for statement in statements] == [True]


@pytest.mark.parametrize("case", ["generating", "succeeded"])
async def test_wait_is_answered_as_the_route_does_it_and_read_by_one_statement(service: Service, case: str) -> None:
    task = await plant(service, **CASES[case])
    path = f"/v1/tasks/{task.id}"
    other = {"Prefer": "respond-async, wait=1", "If-None-Match": f'W/"{task.version + 1}"'}
    ended = {"Prefer": "wait=0"}

    with recorded(service.database) as statements:
        short = [await service.client.get(path, headers=headers) for headers in (other, ended)]
    long = [await service.client.get(path, headers={**LONG_WAY, **headers}) for headers in (other, ended)]

    # Beside the look for lost wake-ups.
    assert [is_of_fast_path(statement) for statement in statements if "api_keys" in statement.sql] == [True, True]
    assert [shown(each) for each in short] == [shown(each) for each in long]
    assert [each.headers["Preference-Applied"] for each in short] == ["wait=1", "wait=0"]


async def test_read_that_fails_is_answered_by_the_route(service: Service) -> None:
    task = await plant(service, S.succeeded)
    path = f"/v1/tasks/{task.id}"
    absent, unknown = f"/v1/tasks/{'0' * 32}", {"Authorization": "Bearer unknown"}

    async with (
        await client_with_key(service, "other") as other,
        await client_with_key(service, "admin", is_admin=True) as admin,
    ):
        answers = {
            "another key's": await other.get(path),
            "an admin's": await admin.get(path),
            "absent": await service.client.get(absent),
            "without a key": await service.anonymous.get(path),
            "with an unknown key": await service.anonymous.get(path, headers=unknown),
            "with an unknown parameter": await service.client.get(path, params={"a": "b"}),
            "not acceptable": await service.client.get(path, headers={"Accept": "text/html"}),
        }

    assert {case: answer.status_code for case, answer in answers.items()} == {
        "another key's": 404,
        "an admin's": 200,
        "absent": 404,
        "without a key": 401,
        "with an unknown key": 401,
        "with an unknown parameter": 422,
        "not acceptable": 406,
    }


@pytest.mark.parametrize("count", [0, 1, PAGE_SIZE, PAGE_SIZE + 1])
async def test_first_page_is_listed_as_the_route_does_it(service: Service, count: int) -> None:
    cases = [CASES[case] for case in CASES]
    for number in range(count):
        columns = {**cases[number % len(cases)], "now": MORNING + timedelta(seconds=number // 3)}
        await plant(service, **columns)

    async with await client_with_key(service, "admin", is_admin=True) as admin:
        for client in (service.client, service.client, admin):
            short, long = await client.get("/v1/tasks"), await client.get("/v1/tasks", headers=LONG_WAY)

            assert shown(short) == shown(long)
            assert len(short.json()["items"]) == min(count, PAGE_SIZE)
            assert ("link" in short.headers) == (count > PAGE_SIZE)


async def test_first_page_ends_where_the_routes_does_when_there_are_many_words(service: Service) -> None:
    words = [{"word": "rain", "start": 1, "end": 1.5}] * (MAX_PAGE_WORDS // 2)
    for _ in range(3):
        task = await plant(service, S.succeeded, clips=1)
        async with service.database.writes.begin() as session:
            await session.execute(update(Clip).where(Clip.task_id == task.id).values(lyrics=words))

    short, long = await service.client.get("/v1/tasks"), await service.client.get("/v1/tasks", headers=LONG_WAY)

    assert shown(short) == shown(long)
    assert len(short.json()["items"]) == 2


async def test_first_page_shows_each_new_version_and_reads_no_other_again(service: Service) -> None:
    tasks = [await plant(service, S.generating, clips=1) for _ in range(3)]
    await plant(service, S.queued)
    await service.client.get("/v1/tasks")
    (await service.client.post(f"/v1/tasks/{tasks[1].id}/cancel")).raise_for_status()

    with recorded(service.database) as statements:
        listed = (await service.client.get("/v1/tasks")).json()["items"]

    assert [item["status"] for item in listed] == ["queued", "generating", "canceled", "generating"]
    assert listed[0]["queue_position"] == 1
    [read] = [statement for statement in statements if "json_" in statement.sql and "clips" in statement.sql]
    assert json.loads(read.parameters[0]) == [tasks[1].id]


async def test_links_of_a_page_are_not_kept_for_longer_than_a_hundredth_of_their_time(database_url: str) -> None:
    async with serve(database_url, link_ttl=1) as service:
        await plant(service, S.succeeded, clips=2)
        read = [(await service.client.get("/v1/tasks")).json()["items"][0]["clips"][1]["audio_url"]]
        with time_machine.travel(datetime.now(UTC) + timedelta(seconds=1)):
            read.append((await service.client.get("/v1/tasks")).json()["items"][0]["clips"][1]["audio_url"])

    assert read[0] != read[1]


@pytest.mark.parametrize("order", ORDERS)
async def test_order_is_answered_as_the_route_does_it(service: Service, order: str) -> None:
    plain = {"Content-Type": "application/json"}
    for headers in ({}, {"Authorization": "Bearer unknown"}, {"Content-Type": "text/plain"}):
        body = ORDERS[order]
        short = await service.client.post("/v1/tasks", content=body, headers={**plain, **headers})
        long = await service.client.post("/v1/tasks", content=body, headers={**plain, **headers, **LONG_WAY})

        assert of_any_task(short) == of_any_task(long)
        assert short.status_code < 500


async def test_order_without_a_key_is_refused_as_the_route_does_it(service: Service) -> None:
    short = await service.anonymous.post("/v1/tasks", json=PROMPT)
    long = await service.anonymous.post("/v1/tasks", json=PROMPT, headers=LONG_WAY)

    assert of_any_task(short) == of_any_task(long)
    assert short.status_code == 401


async def plant(service: Service, status: TaskStatus, clips: int = 0, **columns: Any) -> Task:
    """Add a task with this many clips, the first of them without audio for good."""
    task = await service.add_task(status, **columns)
    async with service.database.writes.begin() as session:
        for index in range(clips):
            given_up_at = None if index else MORNING
            session.add(Clip(task_id=task.id, index=index, given_up_at=given_up_at, created_at=MORNING, duration=1.5))
    return task


def is_of_fast_path(statement: Statement) -> bool:
    return "JOIN tasks" in statement.sql


def of_any_task(response: httpx.Response) -> tuple[int, dict[str, str], str]:
    """A response without what differs from one task to the next."""
    status, headers, text = shown(response)
    text = re.sub(r'"(id|created_at|updated_at)":"[^"]*"|"queue_position":\d+', "", text)
    # The wait for its place in the queue is another one, too.
    headers.pop("retry-after", None)
    return status, {name: re.sub("[0-9a-f]{32}", "", value) for name, value in headers.items()}, text


def shown(response: httpx.Response) -> tuple[int, dict[str, str], str]:
    """A response without what differs from one moment to the next."""
    headers = {name: value for name, value in response.headers.items() if name not in DIFFERENT}
    return response.status_code, headers, re.sub(r"expires=\d+&signature=[\w-]+", "", response.text)
