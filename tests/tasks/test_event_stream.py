"""The Server-Sent Events of a task."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from app.auth.api_keys import find_active, revoke_key, rotate_key
from app.database.engine import Session
from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.tasks.event_stream import STREAM
from app.tasks.service import resolve
from app.tasks.transitions import Failure
from app.tasks.waiting import Waiters
from app.web.negotiation import prefers
from tests.support.api import cancel, client_of, create_task, events_in, sse_blocks
from tests.support.service import Service, serve
from tests.support.settings import KEY, OTHER_KEY

AS_STREAM = {"Accept": "text/event-stream"}


async def revoke(session: Session, key_id: str, now: datetime) -> object:
    return await revoke_key(session, key_id, now)


async def rotate_now(session: Session, key_id: str, now: datetime) -> object:
    return await rotate_key(session, key_id, now, timedelta())


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ([], False),
        (["*/*"], False),
        (["text/html"], False),
        (["application/json"], False),
        (["text/event-stream"], True),
        (["Text/Event-Stream"], True),
        (["text/*"], True),
        (["text/event-stream, */*"], True),
        (["text/event-stream;q=0.5, */*"], False),
        (["application/json, text/event-stream"], False),
        (["application/json;q=0.5", "text/event-stream;q=0.9"], True),
        (["application/json;q=0.9, text/event-stream;q=0.5"], False),
        (["text/event-stream;q=0"], False),
        (["text/event-stream; q=often"], True),
    ],
)
def test_stream_is_sent_to_whom_it_is_more_welcome_than_json(accept: list[str], is_stream: bool) -> None:
    assert prefers(accept, STREAM, "application/json") is is_stream


@pytest.mark.parametrize("ends", [revoke, rotate_now])
async def test_stream_ends_with_its_key(
    database_url: str, monkeypatch: pytest.MonkeyPatch, ends: Callable[[Session, str, datetime], Awaitable[object]]
) -> None:
    monkeypatch.setattr(Waiters, "check_keys_every", timedelta())
    async with serve(database_url, api_keys=f"tests:{KEY},others:{OTHER_KEY}") as service:
        task = await create_task(service.client)
        async with (
            client_of(str(service.client.base_url), OTHER_KEY) as other,
            service.client.stream("GET", _events(task), headers=AS_STREAM) as mine,
            other.stream("GET", _events(await create_task(other)), headers=AS_STREAM) as theirs,
        ):
            blocks, their_blocks = sse_blocks(mine), sse_blocks(theirs)
            await anext(blocks)
            await anext(their_blocks)
            async with service.database.transaction() as (session, now):
                caller = await find_active(session, "tests")
                assert caller is not None
                await ends(session, caller.id, now)

            rest = await asyncio.wait_for(_all(blocks), 10)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(their_blocks), 2)
        again = await service.client.get(_events(task), headers=AS_STREAM)

    assert [set(block) for block in rest] == [{"retry"}]
    assert again.status_code == 401


async def _all(blocks: AsyncIterator[dict[str, str]]) -> list[dict[str, str]]:
    return [block async for block in blocks]


async def test_stream_sends_each_event_as_it_happens_and_ends_after_the_final_one(service: Service) -> None:
    task = await create_task(service.client)

    async with service.client.stream("GET", _events(task), headers=AS_STREAM) as response:
        stream = sse_blocks(response)
        first = await anext(stream)
        await cancel(service.client, task)
        rest = [block async for block in stream]

    listed = (await service.client.get(_events(task))).json()["items"]
    sent = [block for block in [first, *rest] if "data" in block]
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Vary"] == "Accept"
    assert events_in([first, *rest]) == listed
    assert [(block["id"], block["event"]) for block in sent] == [(event["id"], event["type"]) for event in listed]
    assert [block["event"] for block in sent] == ["task.created", "task.canceled"]


async def test_stream_resumes_behind_the_last_event_id(service: Service) -> None:
    task = await create_task(service.client)
    await cancel(service.client, task)
    first, second = (await service.client.get(_events(task))).json()["items"]

    assert await _read_stream(service, task, first["id"]) == [second]


async def test_stream_behind_the_final_event_is_a_204_that_ends_an_event_source(service: Service) -> None:
    ended, revived = [await create_task(service.client) for _ in range(2)]
    await cancel(service.client, ended)
    await _give_up_and_revive(service, revived["id"])

    last = (await service.client.get(_events(ended))).json()["items"][-1]
    answer = await service.client.get(_events(ended), headers=AS_STREAM | {"Last-Event-ID": last["id"]})
    failed = next(e for e in (await service.client.get(_events(revived))).json()["items"] if e["type"] == "task.failed")
    async with service.client.stream(
        "GET", _events(revived), headers=AS_STREAM | {"Last-Event-ID": failed["id"]}
    ) as response:
        following = await anext(sse_blocks(response))

    assert (answer.status_code, answer.content) == (204, b"")
    assert (response.status_code, following["event"]) == (200, "task.revived")


@pytest.mark.parametrize("last_event_id", ["0" * 32, "no such event", "ÿ" * 300])
async def test_stream_behind_an_unknown_event_begins_at_the_first(service: Service, last_event_id: str) -> None:
    task = await create_task(service.client)
    await cancel(service.client, task)

    events = await _read_stream(service, task, last_event_id)

    assert [event["type"] for event in events] == ["task.created", "task.canceled"]


async def test_stream_of_a_revived_task_goes_on_to_its_last_end(service: Service) -> None:
    task = await create_task(service.client)
    await _give_up_and_revive(service, task["id"])

    async with service.client.stream("GET", _events(task), headers=AS_STREAM) as response:
        stream = sse_blocks(response)
        first = [await anext(stream) for _ in range(4)]
        await cancel(service.client, task)
        rest = [block async for block in stream]

    types = [event["type"] for event in events_in(first + rest)]
    assert types == ["task.created", "task.submitted", "task.failed", "task.revived", "task.canceled"]


def test_comments_come_more_often_than_proxies_time_out() -> None:
    assert Waiters.keep_alive == timedelta(seconds=15)


async def test_silent_stream_sends_comments(service: Service) -> None:
    service.services.waiters.keep_alive = timedelta(seconds=0.1)
    task = await create_task(service.client)

    async with service.client.stream("GET", _events(task), headers=AS_STREAM) as response:
        stream = sse_blocks(response)
        blocks = [await anext(stream) for _ in range(3)]

    assert [list(block) for block in blocks] == [["id", "event", "data"], [""], [""]]


async def test_streams_hold_no_database_connection(service: Service) -> None:
    task = await create_task(service.client)
    reading = [asyncio.create_task(_read_stream(service, task)) for _ in range(60)]
    for _ in range(20):
        (await service.client.get(f"/v1/tasks/{task['id']}")).raise_for_status()
    await cancel(service.client, task)

    streams = await asyncio.gather(*reading)

    assert {tuple(event["type"] for event in events) for events in streams} == {("task.created", "task.canceled")}


async def test_stream_of_an_erased_task_ends(service: Service) -> None:
    task = await create_task(service.client)
    reading = asyncio.create_task(_read_stream(service, task))
    await cancel(service.client, task)
    (await service.client.delete(f"/v1/tasks/{task['id']}")).raise_for_status()

    await asyncio.wait_for(reading, 5)


async def test_stream_of_another_keys_task_is_not_found(service: Service) -> None:
    answer = await service.client.get(f"/v1/tasks/{'0' * 32}/events", headers=AS_STREAM)

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


async def _read_stream(
    service: Service, task: dict[str, Any], last_event_id: str | None = None
) -> list[dict[str, Any]]:
    """All events of a stream, once it has ended."""
    headers: dict[str, Any] = {**AS_STREAM, **({"Last-Event-ID": last_event_id.encode()} if last_event_id else {})}
    async with service.client.stream("GET", _events(task), headers=headers) as response:
        assert response.status_code == httpx.codes.OK
        return events_in([block async for block in sse_blocks(response)])


async def _give_up_and_revive(service: Service, task_id: str) -> None:
    lifecycle = service.services.lifecycle
    async with service.database.writes.begin() as session:
        task = await session.get_one(Task, task_id)
        now = task.created_at + timedelta(minutes=1)
        await lifecycle.begin_generating(session, task, "upstream-1", now)
        lifecycle.fail(session, task, Failure(ErrorCode.deadline_exceeded, "late"), now)
        await resolve(lifecycle, session, task, TaskStatus.generating, "upstream-1", now)


def _events(task: dict[str, Any]) -> str:
    return f"/v1/tasks/{task['id']}/events"
