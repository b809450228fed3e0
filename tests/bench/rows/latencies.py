"""What a caller of an idle service waits for, one task after the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from statistics import median
from urllib.parse import urlsplit

from tests.bench.client import Connection, connect, request_bytes
from tests.bench.report import Figure
from tests.bench.servers import Server
from tests.bench.stand import Stand
from tests.bench.upstream import Upstream, serving_upstream
from tests.support.settings import KEY

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
# The most of the median at p50, in ms, and of the longest in times of it.
SUBMIT, WAITER, WEBHOOK, LONGEST = 8, 4, 8, 10
# Enough for a wait to begin, and for the archive of one task to be through before the next begins.
PAUSE = 0.15


def latency(stand: Stand) -> list[Figure]:
    """Submit to POST at the upstream, callback to waiter, callback to webhook, on an idle service."""
    samples = asyncio.run(_sample(stand))
    posts, acknowledged, waiters, webhooks = ([each[part] * 1000 for each in samples] for part in range(4))
    return [
        *_pair("submit sent → POST at the upstream", posts, SUBMIT),
        *_pair("callback → waiter", waiters, WAITER),
        *_pair("callback → webhook", webhooks, WEBHOOK),
        Figure("callback → its 200", acknowledged, "ms"),
    ]


def _pair(what: str, values: Sequence[float], at_most: float) -> list[Figure]:
    """The latency, and how much longer the longest is."""
    middle = median(values)
    return [
        Figure(what, values, "ms", f"{len(values)} samples", at_most=at_most),
        Figure(f"{what}: longest : p50", [max(values) / middle], "×", at_most=LONGEST),
    ]


async def _sample(stand: Stand) -> list[tuple[float, ...]]:
    async with serving_upstream() as upstream:
        with stand.running("latency", upstream_url=upstream.url) as service:
            await asyncio.to_thread(service.settle)
            callers = [await connect(service.url) for _ in range(3)]
            # The first compile the statements.
            samples = [await _follow(service, upstream, callers) for _ in range(stand.size.samples + 3)]
    return samples[3:]


async def _follow(service: Server, upstream: Upstream, callers: Sequence[Connection]) -> tuple[float, ...]:
    """Seconds to the POST, and from the last callback to its answer, to a waiting caller and to the webhook."""
    caller, waiter, sender = callers
    posts, webhooks, downloads = len(upstream.posts), len(upstream.webhooks), upstream.downloads
    body = json.dumps({"prompt": "soft rain on a tin roof", "webhook_url": f"{upstream.url}/hook"})
    ordered = time.monotonic()
    status, answer = await caller.exchange(request_bytes("POST", "/v1/tasks", HEADERS, body))
    assert status == 202, answer
    await upstream.until(posts=posts + 1)
    posted, callback_url = upstream.posts[-1]
    task_id = json.loads(answer)["id"]
    await asyncio.sleep(PAUSE)
    waiter.send(request_bytes("GET", f"/v1/tasks/{task_id}", {**HEADERS, "Prefer": "wait=30"}))
    await asyncio.sleep(PAUSE)
    callback = upstream.callback("complete", callback_url, urlsplit(callback_url).path.split("/")[-2])
    called = time.monotonic()
    acknowledged, answered = await asyncio.gather(_end(sender, callback), _end(waiter))
    await upstream.until(webhooks=webhooks + 1, downloads=downloads + 2)
    await asyncio.sleep(PAUSE)
    return posted - ordered, acknowledged - called, answered - called, upstream.webhooks[-1] - called


async def _end(connection: Connection, request: bytes = b"") -> float:
    """The moment at which an answer is read."""
    connection.send(request)
    status, body = await connection.answer()
    assert status == 200, body
    return time.monotonic()
