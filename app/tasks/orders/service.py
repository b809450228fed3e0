"""The use case of placing an order: REST, the drop-in API, the console and the command line call it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType, SimpleNamespace

from sqlalchemy.exc import IntegrityError
from starlette.responses import Response

from app.auth.audit import record
from app.auth.callers import Caller
from app.auth.rate_limit import spend
from app.config import Settings
from app.database.engine import Database, Session
from app.database.failures import TRANSIENT
from app.errors import BudgetExceeded, InvalidRequest, TooManyRequests
from app.models import Task
from app.observability.metrics import Metrics
from app.observability.tracing import TraceContext
from app.signed_urls import SignedUrls
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.groups import Estimates, PlainOrders
from app.tasks.orders.idempotency import claim_order, fingerprint, refuse_spent
from app.tasks.orders.reuse import find_reusable
from app.tasks.queue.estimates import RetryAfterEstimate
from app.tasks.queue.insertion import Order, sound_digest
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

    `is_replay`: an earlier request with the same Idempotency-Key, or with the id, created the task. `is_reused`: the
    task was there, with an equal sound. `quota` are the rate limit headers of the API key, `retry_after` is in seconds.
    """

    task: TaskRead
    is_replay: bool
    quota: Mapping[str, str]
    retry_after: int
    is_reused: bool = False

    def respond_with(self, snapshot: TaskSnapshot) -> Response:
        """The response to the order, with the task as it is now."""
        headers = {"Location": f"/v1/tasks/{self.task.id}", "Cache-Control": "no-store", **self.quota}
        if self.is_replay:
            headers["Idempotency-Replayed"] = "true"
        if self.is_reused:
            headers["Preference-Applied"] = "reuse"
        if not snapshot.is_final:
            headers["Retry-After"] = str(self.retry_after)
        return Response(snapshot.body, 200 if snapshot.is_final else 202, headers, "application/json")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the audit log tells of an order that somebody places in a caller's name."""

    actor: str
    instead_of: str | None

    def record(self, session: Session, task: Task | SimpleNamespace, now: datetime) -> None:
        if self.instead_of is not None:
            record(session, now, self.actor, "task.ordered_again", task.id, instead_of=self.instead_of)
        else:
            record(session, now, self.actor, "task.ordered", task.id, key=task.api_key_id)


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
        task_id: str | None = None,
        reuse: timedelta | None = None,
        callback_url: str | None = None,
        trace_context: TraceContext | None = None,
        instead_of: str | None = None,
    ) -> PlacedTask:
        """
        Store a task, to be submitted. Raises InvalidRequest, IdempotencyKeyReused, TaskDeleted, IdTaken,
        BudgetExceeded, TooManyRequests, and DatabaseUnavailable if too many others wait to be stored.

        `task_id` is the id that the caller has chosen; `reuse` is how old an equal sound may be that is used again;
        `callback_url` is where a client of the vendor's API wants its callbacks, `trace_context` what a new task keeps.
        `instead_of` is the task whose sound is ordered again: the audit log tells of orders in a caller's name.
        """
        self._check(body)
        entry = None if caller.actor == caller.api_key_id else _Entry(caller.actor, instead_of)
        order = Order(caller.api_key_id, body, callback_url, trace_context, task_id)
        is_repeatable = idempotency_key is not None or task_id is not None or reuse is not None
        is_plain = not is_repeatable and entry is None and self._settings.key_rate is None
        stored = await self._plain_orders.store(order) if is_plain else None
        if stored is not None:
            return self._placed(stored.task, await stored.estimates)
        place_alone = partial(self._place_alone, order, idempotency_key, reuse, is_plain, entry)
        try:
            return await place_alone()
        except (IntegrityError, BudgetExceeded, TooManyRequests):
            if task_id is None:
                raise
            # Meanwhile another process may have stored a task with this id, for the last room that there was: then it
            # is found now.
            return await place_alone()

    async def _place_alone(
        self,
        order: Order,
        idempotency_key: str | None,
        reuse: timedelta | None,
        is_plain: bool,
        entry: _Entry | None,
    ) -> PlacedTask:
        key_id, rate = order.api_key_id, self._settings.key_rate
        digest = fingerprint(order.body, self._settings.default_model)
        # The rows whose locks it may wait for: the caller's for its rate, or because it was not to be had at once, and
        # those of the key and of the id that make an order one.
        locked = [
            (key_id, rate or is_plain or None),
            (f"{key_id}/{idempotency_key}", idempotency_key),
            (str(order.task_id), order.task_id),
        ]
        async with AsyncExitStack() as stack:
            for name, is_locked in locked:
                if is_locked is not None:
                    await stack.enter_async_context(self._database.exclusive(name))
            await stack.enter_async_context(self._database.orders.admitted())
            session, now = await stack.enter_async_context(self._database.transaction())
            claimed = await claim_order(session, order, idempotency_key, digest, now)
            found = claimed.task
            if found is None and reuse is not None:
                sound = sound_digest(order.body, order.body.model or self._settings.default_model)
                found = await find_reusable(session, key_id, sound, now - reuse)
            quota = await spend(session, key_id, rate, now, is_free=found is not None)
            task = found or (await self._lifecycle.create(session, [order._replace(digest=digest)], now))[0]
            if found is None and order.task_id is not None:
                # Since it was looked for, an earlier task with this id may have come and gone.
                await refuse_spent(session, key_id, order.task_id)
            if found is None and entry is not None:
                entry.record(session, task, now)
            is_replay, is_reused = claimed.task is not None, reuse is not None and claimed.is_older(found)
            claimed.bind_to(task)
        estimates = await self._read_estimates([task])
        return self._placed(task, estimates, quota, is_replay=is_replay, is_reused=is_reused)

    def _placed(
        self,
        task: Task | SimpleNamespace,
        estimates: Estimates,
        quota: Mapping[str, str] = MappingProxyType({}),
        *,
        is_replay: bool = False,
        is_reused: bool = False,
    ) -> PlacedTask:
        positions, seconds = estimates
        retry_after = self._retry_after.from_place(positions.get(task.id), seconds)
        shown = read_task(task, positions, self._signed_urls)
        return PlacedTask(shown, is_replay, quota, retry_after, is_reused)

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
