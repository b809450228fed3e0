"""What tests of waiting measure, change and read."""

import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx


async def timed(answering: Awaitable[httpx.Response]) -> tuple[httpx.Response, float]:
    """An answer, and after how many seconds it came."""
    began = time.monotonic()
    answer = await answering
    return answer, time.monotonic() - began


async def cancel(client: httpx.AsyncClient, task: dict[str, Any]) -> None:
    """Make a task final."""
    (await client.post(f"/v1/tasks/{task['id']}/cancel")).raise_for_status()


async def let_others_wait(client: httpx.AsyncClient) -> None:
    """Make requests that are answered: those that this process sent before wait by then."""
    for _ in range(2):
        (await client.get("/v1/usage")).raise_for_status()


async def blocks_of(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """The blocks of a stream as they come, field by field; a comment's field has no name."""
    block: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")
        elif block:
            yield block
            block = {}


def data_of(blocks: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What the blocks of a stream tell, as in the list."""
    return [json.loads(block["data"]) for block in blocks if "data" in block]
