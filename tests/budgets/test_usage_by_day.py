"""Usage by day and by key, as JSON and as a table."""

import csv
import io
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

import httpx
import pytest

from app.enums import Charge, TaskStatus
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task
from tests.support.service import Service, client_with_key

DAYS = "2026-03-01", "2026-03-02", "2026-03-04"
AS_CSV = {"Accept": "text/csv"}


async def test_days_with_tasks_are_told_one_by_one(service: Service) -> None:
    await _fill(service)

    found = (await service.client.get("/v1/usage?by=day")).json()

    assert found == {
        "items": [
            {"day": "2026-03-01", "tasks": 2, "posts": 3, "charged": 1, "refunded": 1, "possible": 0},
            {"day": "2026-03-02", "tasks": 1, "posts": 0, "charged": 0, "refunded": 0, "possible": 0},
            {"day": "2026-03-04", "tasks": 1, "posts": 1, "charged": 0, "refunded": 0, "possible": 1},
        ],
        "next_cursor": None,
    }


async def test_day_counts_what_of_it_is_in_the_range(service: Service) -> None:
    await _fill(service)

    part = {"by": "day", "since": "2026-03-01T08:00:30Z", "until": "2026-03-02T23:00:00+14:00"}
    found = (await service.client.get("/v1/usage", params=part)).json()["items"]

    assert [(item["day"], item["tasks"], item["refunded"]) for item in found] == [
        ("2026-03-01", 1, 1),
        ("2026-03-02", 1, 0),
    ]


async def test_midnight_begins_a_day(service: Service) -> None:
    midnight = MORNING.replace(hour=0)
    for before in (timedelta(), timedelta(microseconds=1)):
        await service.add_task(now=midnight - before)

    found = (await service.client.get("/v1/usage?by=day")).json()["items"]

    assert [(item["day"], item["tasks"]) for item in found] == [("2026-02-28", 1), ("2026-03-01", 1)]


async def test_erased_task_counts_on_its_day(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=1)
    before = (await service.client.get("/v1/usage?by=day")).json()

    assert (await service.client.delete(f"/v1/tasks/{task.id}")).status_code == 204

    assert (await service.client.get("/v1/usage?by=day")).json() == before
    assert before["items"][0]["charged"] == 1


async def test_admin_sees_each_key_and_day(service: Service) -> None:
    own, others = await _fill(service)
    keys = sorted([own, *others])
    async with await client_with_key(service, "admin", is_admin=True) as admin:
        everything = (await admin.get("/v1/usage?by=day&key=*&limit=200")).json()
        one = (await admin.get(f"/v1/usage?by=day&key={others[0]}")).json()["items"]
        pages = await _pages(admin, "/v1/usage?by=day&key=*&limit=4")
        total = (await admin.get("/v1/usage?key=*")).json()
        nothing = (await admin.get("/v1/usage?by=day")).json()["items"]

    assert [(item["key"], item["day"]) for item in everything["items"]] == [
        (key, day) for key in keys for day in (DAYS if key == own else DAYS[:1])
    ]
    assert everything["next_cursor"] is None
    assert (list(map(len, pages)), list(chain(*pages))) == ([4, 4, 4, 2], everything["items"])
    assert one == [item for item in everything["items"] if item["key"] == others[0]]
    assert total == {name: sum(item[name] for item in everything["items"]) for name in total}
    assert (total["tasks"], nothing) == (15, [])


async def test_own_key_may_be_named_and_no_other(service: Service) -> None:
    own, others = await _fill(service)

    named = (await service.client.get(f"/v1/usage?by=day&key={own}")).json()["items"]
    foreign = [await service.client.get("/v1/usage", params={"key": key}) for key in (others[0], "0" * 32, "*")]
    async with await client_with_key(service, "admin", is_admin=True) as admin:
        unknown = await admin.get(f"/v1/usage?key={'0' * 32}")

    assert [(item["key"], item["day"]) for item in named] == [(own, day) for day in DAYS]
    assert {(answer.status_code, answer.json()["type"]) for answer in foreign} == {(403, "/problems/not-permitted")}
    assert len({answer.content for answer in foreign}) == 1
    assert unknown.status_code == 404


async def test_table_has_a_line_for_each_day(service: Service) -> None:
    own, _ = await _fill(service)

    plain = await service.client.get("/v1/usage?by=day&limit=1", headers=AS_CSV)
    named = await service.client.get(f"/v1/usage?by=day&key={own}", headers=AS_CSV)
    in_all = await service.client.get("/v1/usage", headers=AS_CSV)

    assert plain.text == (
        "day,tasks,posts,charged,refunded,possible\r\n"
        "2026-03-01,2,3,1,1,0\r\n2026-03-02,1,0,0,0,0\r\n2026-03-04,1,1,0,0,1\r\n"
    )
    assert named.text.splitlines()[:2] == [
        "day,key,tasks,posts,charged,refunded,possible",
        f"2026-03-01,{own},2,3,1,1,0",
    ]
    assert in_all.text == "tasks,posts,charged,refunded,possible\r\n4,4,1,1,1\r\n"
    assert {(answer.headers["Content-Type"], answer.headers["Vary"]) for answer in (plain, named, in_all)} == {
        ("text/csv; charset=utf-8", "Accept")
    }


async def test_table_of_all_keys_has_what_the_pages_have(service: Service) -> None:
    await _fill(service)
    async with await client_with_key(service, "admin", is_admin=True) as admin:
        table = (await admin.get("/v1/usage?by=day&key=*", headers=AS_CSV)).text
        items = (await admin.get("/v1/usage?by=day&key=*&limit=200")).json()["items"]

    assert list(csv.DictReader(io.StringIO(table))) == [
        {name: str(value) for name, value in item.items()} for item in items
    ]


async def test_table_without_days_has_the_names(service: Service) -> None:
    answer = await service.client.get("/v1/usage?by=day", headers=AS_CSV)

    assert answer.text == "day,tasks,posts,charged,refunded,possible\r\n"


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/usage?by=day"])
async def test_form_of_usage_is_the_one_that_is_accepted(service: Service, path: str) -> None:
    async def type_for(accept: str) -> tuple[int, str]:
        answer = await service.client.get(path, headers={"Accept": accept})
        return answer.status_code, answer.headers["Content-Type"].partition(";")[0]

    assert [
        await type_for(accept) for accept in ("*/*", "text/*", "text/csv;q=0.5, application/json", "image/png")
    ] == [
        (200, "application/json"),
        (200, "text/csv"),
        (200, "application/json"),
        (406, "application/problem+json"),
    ]


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
async def test_refusal_is_told_in_place_of_a_table_too(service: Service, accept: str) -> None:
    for query, status in [("key=*", 403), ("by=week", 422), ("since=x", 422), ("key=%00", 422)]:
        answer = await service.client.get(f"/v1/usage?by=day&{query}", headers={"Accept": accept})

        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), query
    wrong = await service.client.get("/v1/usage?by=day&cursor=W10")
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "#/query/cursor")


async def _fill(service: Service) -> tuple[str, Sequence[str]]:
    """Tasks on three days for the client's key, and one for each of 11 others; return their ids."""
    later = timedelta(minutes=10)
    first = await service.add_task(TaskStatus.succeeded, charge=Charge.charged, posts=2)
    await service.add_task(TaskStatus.failed, now=MORNING + later, charge=Charge.refunded, posts=1)
    await service.add_task(TaskStatus.canceled, now=MORNING + timedelta(days=1), charge=Charge.none)
    await service.add_task(TaskStatus.failed, now=MORNING + timedelta(days=3), charge=Charge.possible, posts=1)
    others = [await add_key(service.database, f"other {number}") for number in range(11)]
    for key_id in others:
        await add_task(service.database, key_id, charge=Charge.charged)
    return first.api_key_id, others


async def _pages(client: httpx.AsyncClient, path: str) -> list[list[dict[str, Any]]]:
    pages, url = [], path
    while url:
        answer = (await client.get(url)).raise_for_status()
        pages.append(answer.json()["items"])
        url = answer.links.get("next", {}).get("url", "")
    return pages
