"""A caller of the REST API: clients, tasks, waits and event streams."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx

from tests.support.settings import KEY

FINAL = frozenset({"succeeded", "failed", "canceled"})

Json = dict[str, Any]


def client_of(url: str, key: str | None = KEY, **options: Any) -> httpx.AsyncClient:
    """A client of the server at this URL, with a caller's key; use as a context manager."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Loading certificates takes longer than most tests, and no server of the tests but one has any.
    plain = {"base_url": url, "headers": headers, "trust_env": False, "timeout": 30, "verify": False}
    # The server closes idle connections after 5 s: a client that would use one until then can meet its end.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=2)
    return httpx.AsyncClient(**{**plain, "limits": limits, **options})


async def create_task(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> Json:
    """Create a task; return it as answered. Comes back as `Retry-After` says where a busy machine refuses it."""
    deadline = time.monotonic() + 30
    while True:
        answer = await client.post("/v1/tasks", json={"prompt": prompt, **fields})
        if answer.status_code != 503 or time.monotonic() > deadline:
            break
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    assert answer.status_code == 202, answer.text
    task: Json = answer.json()
    return task


async def create_tasks(client: httpx.AsyncClient, count: int, at_once: int = 10) -> list[str]:
    """Create that many tasks; return their ids."""
    places = asyncio.Semaphore(at_once)

    async def create_one() -> str:
        async with places:
            return str((await create_task(client))["id"])

    return await asyncio.gather(*(create_one() for _ in range(count)))


async def until_status(client: httpx.AsyncClient, task_id: str, *statuses: str, within: float = 30) -> Json:
    """Return the task once it has one of these statuses."""
    deadline = time.monotonic() + within
    while True:
        task: Json = (await client.get(f"/v1/tasks/{task_id}")).raise_for_status().json()
        if task["status"] in statuses:
            return task
        assert time.monotonic() < deadline, task
        await asyncio.sleep(0.05)


async def until_final(client: httpx.AsyncClient, task_id: str, within: float = 30) -> Json:
    """Return the task once it is final."""
    return await until_status(client, task_id, *FINAL, within=within)


async def cancel(client: httpx.AsyncClient, task: Json) -> None:
    """Make a task final."""
    (await client.post(f"/v1/tasks/{task['id']}/cancel")).raise_for_status()


async def timed(answering: Awaitable[httpx.Response]) -> tuple[httpx.Response, float]:
    """An answer, and the seconds until it came."""
    began = time.monotonic()
    answer = await answering
    return answer, time.monotonic() - began


async def let_earlier_requests_arrive(client: httpx.AsyncClient) -> None:
    """Make requests that are answered: requests that this process sent before are being handled then."""
    for _ in range(2):
        (await client.get("/v1/usage")).raise_for_status()


async def sse_blocks(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """The blocks of an event stream as they come, field by field; the field of a comment has no name."""
    block: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")
        elif block:
            yield block
            block = {}


def events_in(blocks: list[dict[str, str]]) -> list[Json]:
    """The events in the blocks of a stream, in the form of the list of events."""
    return [json.loads(block["data"]) for block in blocks if "data" in block]
