"""Long polling with `Prefer: wait`."""

import asyncio

import httpx
import pytest

from app.web.negotiation import preferred_wait
from tests.support.api import cancel, create_task, timed
from tests.support.service import Service
from tests.support.statements import recorded
from tests.support.wait import eventually

ORDER = {"prompt": "soft rain"}


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    """A caller of a service without loops: a task changes only when a test says so."""
    return service.client


@pytest.mark.parametrize(
    ("preferences", "seconds"),
    [
        ([], None),
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["wait=0"], 0),
        (["wait=0010"], 10),
        (["wait=61"], 60),
        (["wait=999999999"], 60),
        (["respond-async, wait=5"], 5),
        (["respond-async", "wait=5; since=now"], 5),
        (["wait=5, wait=9"], 5),
        (["wait"], None),
        (["wait="], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=ten, wait=5"], None),
        (["wait=٣"], None),
        (["wait=" + "9" * 5000], None),
        (["waiting=5"], None),
    ],
)
def test_preferred_wait_is_the_first_that_can_be_read_up_to_a_minute(
    preferences: list[str], seconds: int | None
) -> None:
    assert preferred_wait(preferences) == seconds


async def test_request_is_answered_when_its_task_ends(client: httpx.AsyncClient) -> None:
    headers = {"Prefer": "wait=20"}
    waiting = asyncio.create_task(timed(client.post("/v1/tasks", json=ORDER, headers=headers)))
    await cancel(client, await _only_task(client))

    answer, seconds = await waiting

    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert "Retry-After" not in answer.headers
    assert seconds < 5


async def test_request_whose_task_goes_on_is_answered_at_the_deadline(client: httpx.AsyncClient) -> None:
    answer, seconds = await timed(client.post("/v1/tasks", json=ORDER, headers={"Prefer": "wait=1"}))

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["Location"] == f"/v1/tasks/{answer.json()['id']}"
    assert 1 <= seconds <= 2


async def test_replayed_request_waits_too(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    task = (await client.post("/v1/tasks", json=ORDER, headers=key)).json()
    waiting = asyncio.create_task(timed(client.post("/v1/tasks", json=ORDER, headers={"Prefer": "wait=20", **key})))
    await cancel(client, task)

    answer, seconds = await waiting

    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, task["id"], "canceled")
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert seconds < 5


async def test_read_waits_for_the_end(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    waiting = asyncio.create_task(timed(client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=20"})))
    await cancel(client, task)

    answer, seconds = await waiting

    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert (answer.headers["Preference-Applied"], answer.headers["Vary"]) == ("wait=20", "Prefer")
    assert seconds < 5


async def test_read_of_an_ended_task_does_not_wait(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    await cancel(client, task)

    answer, seconds = await timed(client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=20"}))

    assert answer.json()["status"] == "canceled"
    assert seconds < 5


async def test_read_at_its_deadline_answers_what_stands(client: httpx.AsyncClient) -> None:
    task = await create_task(client)

    answer, seconds = await timed(client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=1"}))

    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert 1 <= seconds <= 2


async def test_read_waits_for_another_version_than_the_known_one(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    known = (await client.get(f"/v1/tasks/{task['id']}")).headers["ETag"]
    headers = {"Prefer": "wait=20", "If-None-Match": known}
    waiting = asyncio.create_task(timed(client.get(f"/v1/tasks/{task['id']}", headers=headers)))
    await cancel(client, task)

    answer, seconds = await waiting

    assert answer.status_code == 200
    assert answer.headers["ETag"] != known
    assert seconds < 5


async def test_read_of_another_version_than_the_known_one_does_not_wait(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    headers = {"Prefer": "wait=20", "If-None-Match": 'W/"99"'}

    answer, seconds = await timed(client.get(f"/v1/tasks/{task['id']}", headers=headers))

    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert seconds < 5


async def test_read_of_an_unchanged_task_ends_as_not_modified(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    known = (await client.get(f"/v1/tasks/{task['id']}")).headers["ETag"]
    headers = {"Prefer": "wait=1", "If-None-Match": known}

    answer, seconds = await timed(client.get(f"/v1/tasks/{task['id']}", headers=headers))

    assert (answer.status_code, answer.content) == (304, b"")
    assert (answer.headers["ETag"], answer.headers["Preference-Applied"]) == (known, "wait=1")
    assert 1 <= seconds <= 2


async def test_read_ends_when_its_task_is_erased(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    await cancel(client, task)
    known = (await client.get(f"/v1/tasks/{task['id']}")).headers["ETag"]
    headers = {"Prefer": "wait=20", "If-None-Match": known}
    waiting = asyncio.create_task(timed(client.get(f"/v1/tasks/{task['id']}", headers=headers)))
    (await client.delete(f"/v1/tasks/{task['id']}")).raise_for_status()

    answer, seconds = await waiting

    assert answer.status_code == 404
    assert seconds < 5


async def test_preference_that_cannot_be_read_is_ignored(client: httpx.AsyncClient) -> None:
    task = await create_task(client)

    answer, seconds = await timed(client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=soon"}))

    assert answer.status_code == 200
    assert "Preference-Applied" not in answer.headers
    assert seconds < 5


async def test_task_of_another_key_is_not_waited_for(client: httpx.AsyncClient) -> None:
    answer, seconds = await timed(client.get(f"/v1/tasks/{'0' * 32}", headers={"Prefer": "wait=20"}))

    assert answer.status_code == 404
    assert "Preference-Applied" not in answer.headers
    assert seconds < 5


async def test_waits_hold_no_database_connection(client: httpx.AsyncClient) -> None:
    task = await create_task(client)
    path, headers = f"/v1/tasks/{task['id']}", {"Prefer": "wait=30"}
    waiting = [asyncio.create_task(client.get(path, headers=headers)) for _ in range(60)]
    for _ in range(20):
        (await client.get(path)).raise_for_status()
    await cancel(client, task)

    answers = await asyncio.gather(*waiting)

    assert {answer.json()["status"] for answer in answers} == {"canceled"}


async def test_all_who_wait_for_a_task_share_one_read(service: Service) -> None:
    client, task = service.client, await create_task(service.client)
    path, stream = f"/v1/tasks/{task['id']}", {"Accept": "text/event-stream"}
    waits = [asyncio.create_task(client.get(path, headers={"Prefer": "wait=30"})) for _ in range(40)]
    streams = [asyncio.create_task(client.get(f"{path}/events", headers=stream)) for _ in range(40)]
    await eventually(lambda: len(service.services.wakeups.subscriptions()) == 80)
    with recorded(service.database) as statements:
        await cancel(client, task)
        answers, followed = await asyncio.gather(asyncio.gather(*waits), asyncio.gather(*streams))

    assert {answer.json()["status"] for answer in answers} == {"canceled"}
    assert {"event: task.canceled" in answer.text for answer in followed} == {True}
    assert len(statements) < 30


async def _only_task(client: httpx.AsyncClient) -> dict[str, object]:
    found: list[dict[str, object]] = []

    async def is_there() -> bool:
        found[:] = (await client.get("/v1/tasks")).json()["items"]
        return len(found) == 1

    await eventually(is_there)
    return found[0]
