"""Sends callbacks: each one is POSTed, and retried unless the response is HTTP 200."""

import asyncio
import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import Coroutine
from functools import cache
from typing import Any

import httpx

from app.sandbox.journal import CallbackAttempt, caller_task_id
from app.sandbox.payloads import callback_body
from app.sandbox.state import Sandbox, Task, now
from app.sandbox.timeline import PlannedCallback, Stage, failure_for, plan_callbacks

_MAX_CONCURRENT = 100


class CallbackSender:
    """Sends the callbacks of every task. An async context manager; leaving it drops unsent callbacks."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._jobs: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        # A client with a hundred connections scans all of them for each request, which costs four times
        # the CPU of a hundred clients with one connection each. The last client used is the most likely
        # to have an open connection, so it is used first.
        self._idle: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> "CallbackSender":
        return self

    async def __aexit__(self, *_: object) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for client in self._idle:
            await client.aclose()

    def start(self, task: Task) -> None:
        """Start sending this task's callbacks at their times."""
        self._spawn(self._send_all(task))

    async def _send_all(self, task: Task) -> None:
        for step in plan_callbacks(task.faults, task.delay):
            await asyncio.sleep(task.created_monotonic + step.at - now())
            delivered = await self._post(task, step, attempt=1)
            task.first_callback_sent.set()
            if not delivered:
                self._spawn(self._retry(task, step))
        task.first_callback_sent.set()

    async def _retry(self, task: Task, step: PlannedCallback) -> None:
        for attempt, delay in enumerate(self._sandbox.options.callback_retry_delays, start=2):
            await asyncio.sleep(delay)
            if await self._post(task, step, attempt):
                return
        task.callbacks_given_up |= step.stage is Stage.complete

    async def _post(self, task: Task, step: PlannedCallback, attempt: int) -> bool:
        url = task.order.callback_url
        body = callback_body(task, step, failure_for(task.faults))
        async with self._slots:
            record = CallbackAttempt(task.id, url, caller_task_id(url), step.kind, attempt)
            self._sandbox.journal.add(record)
            task.callbacks.append(record)
            client = self._idle.pop() if self._idle else _new_client()
            try:
                async with asyncio.timeout(self._sandbox.options.callback_timeout):
                    record.status = await self._send(client, task, body)
            # The URL may be malformed, and anyio raises AttributeError for a connection that is reset as it opens.
            except Exception as error:
                record.error = type(error).__name__
            finally:
                self._idle.append(client)
        record.duration = now() - record.monotonic
        record.delivered = record.status == 200
        return record.delivered

    async def _send(self, client: httpx.AsyncClient, task: Task, body: bytes) -> int:
        url = httpx.URL(task.order.callback_url)
        if url.host.endswith(".invalid"):
            # RFC 6761, section 6.4: such names never resolve. A resolver would take seconds to say so.
            raise httpx.ConnectError("reserved name")
        headers = {"Content-Type": "application/json"}
        if key := self._sandbox.options.callback_hmac_key:
            headers |= signature_headers(key, task.id, int(time.time()))
        return (await client.post(url, content=body, headers=headers)).status_code

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(coroutine)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)


def signature_headers(key: str, task_id: str, timestamp: int) -> dict[str, str]:
    """The signature headers of a callback. The signature does not cover the body."""
    digest = hmac.digest(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": base64.b64encode(digest).decode()}


def _new_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(
        trust_env=False,
        verify=_tls_context(),
        timeout=None,  # noqa: S113 - one deadline covers the whole exchange
        # Shorter than the usual keep-alive timeout of receivers, so that no connection is closed while it is reused.
        limits=httpx.Limits(max_connections=1, keepalive_expiry=2),
        headers={"User-Agent": "soundpost-sandbox"},
    )


@cache
def _tls_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
