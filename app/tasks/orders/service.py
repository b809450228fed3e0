"""The use case of placing an order: REST, the drop-in API, the console and the command line call it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType, SimpleNamespace

from starlette.responses import Response

from app.auth.callers import Caller
from app.auth.rate_limit import spend
from app.config import Settings
from app.database.engine import Database
from app.database.failures import TRANSIENT
from app.errors import InvalidRequest
from app.models import Task
from app.observability.metrics import Metrics
from app.observability.tracing import TraceContext
from app.signed_urls import SignedUrls
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.groups import Estimates, PlainOrders
from app.tasks.orders.idempotency import claim_key, fingerprint
from app.tasks.queue.estimates import RetryAfterEstimate
from app.tasks.queue.positions import QueuePositions
from app.tasks.schemas import TaskRead, read_task
from app.tasks.waiting import TaskSnapshot
from app.webhooks.lifecycle import check_receiver

# How long the response to a stored task may wait for its queue position and its Retry-After.
ESTIMATES_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class PlacedTask:
    """
    The result of `place`.

    `is_replay`: an earlier request with the same Idempotency-Key created the task. `quota` are
    the rate limit headers of the API key, `retry_after` is in seconds.
    """

    task: TaskRead
    is_replay: bool
    quota: Mapping[str, str]
    retry_after: int

    def respond_with(self, snapshot: TaskSnapshot) -> Response:
        """The response to the order, with the task as it is now."""
        headers = {"Location": f"/v1/tasks/{self.task.id}", "Cache-Control": "no-store", **self.quota}
        if self.is_replay:
            headers["Idempotency-Replayed"] = "true"
        if not snapshot.is_final:
            headers["Retry-After"] = str(self.retry_after)
        return Response(snapshot.body, 200 if snapshot.is_final else 202, headers, "application/json")


class OrderService:
    """Stores orders, and checks them before."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        lifecycle: TaskLifecycle,
        signed_urls: SignedUrls,
        positions: QueuePositions,
        metrics: Metrics,
    ) -> None:
        self._settings, self._database, self._lifecycle = settings, database, lifecycle
        self._signed_urls, self._positions = signed_urls, positions
        self._retry_after = RetryAfterEstimate(settings.upstream_rate)
        observe = metrics.batches["orders"].observe
        self._plain_orders = PlainOrders(database, lifecycle, self._read_estimates, observe)

    async def place(
        self,
        caller: Caller,
        body: TaskCreate,
        *,
        idempotency_key: str | None = None,
        callback_url: str | None = None,
        trace_context: TraceContext | None = None,
    ) -> PlacedTask:
        """
        Store a task, to be submitted. Raises InvalidRequest, IdempotencyKeyReused, TaskDeleted, BudgetExceeded,
        TooManyRequests, and DatabaseUnavailable if too many others wait to be stored.

        `callback_url` is where a client of the vendor's API wants its callbacks, `trace_context` what a new task keeps.
        """
        self._check(body)
        key_id, rate = caller.api_key_id, self._settings.key_rate
        order = (key_id, body, callback_url, trace_context)
        is_plain = idempotency_key is None and rate is None
        stored = await self._plain_orders.store(order) if is_plain else None
        if stored is not None:
            return self._placed(stored.task, await stored.estimates)
        # The rows whose locks it may wait for: the idempotency key, and the caller's for its rate, or because it was
        # not to be had at once.
        locked = [(key_id, rate or is_plain or None), (f"{key_id}/{idempotency_key}", idempotency_key)]
        async with AsyncExitStack() as stack:
            for name, is_locked in locked:
                if is_locked is not None:
                    await stack.enter_async_context(self._database.exclusive(name))
            await stack.enter_async_context(self._database.orders.admitted())
            session, now = await stack.enter_async_context(self._database.transaction())
            digest = fingerprint(body, self._settings.default_model)
            claimed = await claim_key(session, key_id, idempotency_key, digest, now)
            quota = await spend(session, key_id, rate, now, is_free=claimed.task is not None)
            task = claimed.task or (await self._lifecycle.create(session, [order], now))[0]
            claimed.bind_to(task)
        return self._placed(task, await self._read_estimates([task]), quota, is_replay=claimed.task is not None)

    def _placed(
        self,
        task: Task | SimpleNamespace,
        estimates: Estimates,
        quota: Mapping[str, str] = MappingProxyType({}),
        *,
        is_replay: bool = False,
    ) -> PlacedTask:
        positions, seconds = estimates
        retry_after = self._retry_after.from_place(positions.get(task.id), seconds)
        return PlacedTask(read_task(task, positions, self._signed_urls), is_replay, quota, retry_after)

    def _check(self, body: TaskCreate) -> None:
        models = self._settings.models
        if body.model is not None and body.model not in models:
            raise InvalidRequest(errors=[{"pointer": "#/model", "detail": f"must be one of {', '.join(models)}"}])
        if body.webhook_url is not None:
            check_receiver(body.webhook_url, self._settings.egress_allow, "#/webhook_url")

    async def _read_estimates(self, tasks: Sequence[Task | SimpleNamespace]) -> Estimates:
        """
        The queue positions of stored tasks, and the seconds that one probably takes from its submit.

        Read after the commit, so that no writer waits for it. If the database does not answer
        in time, the positions are left out.
        """
        with suppress(*TRANSIENT):
            async with asyncio.timeout(ESTIMATES_TIMEOUT.total_seconds()), self._database.reads() as session:
                positions = await self._positions.find(self._database.fetch_shared, tasks)
                return positions, await self._retry_after.seconds(session)
        return {}, self._retry_after.latest
