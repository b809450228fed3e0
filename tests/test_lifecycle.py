"""SIGTERM: waiting requests get their responses, streams end, and the process exits within its grace period."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.api import client_of, create_task, let_earlier_requests_arrive, sse_blocks
from tests.support.processes import Process, Processes

GRACE = 5.0


async def test_sigterm_answers_waits_ends_streams_and_exits_within_the_grace_period(
    tmp_path: Path, database_url: str
) -> None:
    with Processes(tmp_path, grace=str(GRACE)) as processes:
        service = await processes.serve(database_url, (await processes.sandbox()).url, "--no-loops")
        async with client_of(service.url) as client:
            task = await create_task(client)
            prefer = {"Prefer": "wait=50"}
            creating = asyncio.create_task(client.post("/v1/tasks", json={"prompt": "rain"}, headers=prefer))
            reading = asyncio.create_task(client.get(f"/v1/tasks/{task['id']}", headers=prefer))
            streaming = asyncio.create_task(_blocks(client, task))
            unfinished = await _send_half_a_request(service)
            await let_earlier_requests_arrive(client)
            began = time.monotonic()

            exit_code = await service.stop()

            seconds = time.monotonic() - began
            created, read, blocks = await asyncio.gather(creating, reading, streaming)
            unfinished.close()
    assert (created.status_code, created.json()["status"]) == (202, "queued")
    assert (read.status_code, read.json()["id"]) == (200, task["id"])
    assert "retry" in blocks[-1]
    assert exit_code == 0
    assert seconds < GRACE


async def _blocks(client: httpx.AsyncClient, task: dict[str, Any]) -> list[dict[str, str]]:
    async with client.stream(
        "GET", f"/v1/tasks/{task['id']}/events", headers={"Accept": "text/event-stream"}
    ) as response:
        return [block async for block in sse_blocks(response)]


async def _send_half_a_request(service: Process) -> asyncio.StreamWriter:
    url = httpx.URL(service.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: ")
    await writer.drain()
    return writer
