"""A stop ends every wait with an answer, and the process within its grace."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import Processes, Running, client_of, order
from tests.tasks.callers import blocks_of, let_others_wait

GRACE = 5.0


async def test_stop_answers_waits_ends_streams_and_ends_the_process_within_its_grace(
    tmp_path: Path, database_url: str
) -> None:
    with Processes(tmp_path, grace=str(GRACE)) as processes:
        service = await processes.serve(database_url, await processes.sandbox(), "--no-loops")
        async with client_of(service) as client:
            task = await order(client)
            prefer = {"Prefer": "wait=50"}
            ordering = asyncio.create_task(client.post("/v1/tasks", json={"prompt": "rain"}, headers=prefer))
            reading = asyncio.create_task(client.get(f"/v1/tasks/{task['id']}", headers=prefer))
            hearing = asyncio.create_task(_blocks(client, task))
            silent = await _half_a_request(service)
            await let_others_wait(client)
            began = time.monotonic()

            exit_code = await service.stop()

            seconds = time.monotonic() - began
            ordered, read, heard = await asyncio.gather(ordering, reading, hearing)
            silent.close()
    assert (ordered.status_code, ordered.json()["status"]) == (202, "queued")
    assert (read.status_code, read.json()["id"]) == (200, task["id"])
    assert "retry" in heard[-1]
    assert exit_code == 0
    assert seconds < GRACE


async def _blocks(client: httpx.AsyncClient, task: dict[str, Any]) -> list[dict[str, str]]:
    async with client.stream(
        "GET", f"/v1/tasks/{task['id']}/events", headers={"Accept": "text/event-stream"}
    ) as response:
        return [block async for block in blocks_of(response)]


async def _half_a_request(service: Running) -> asyncio.StreamWriter:
    url = httpx.URL(service.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: ")
    await writer.drain()
    return writer
