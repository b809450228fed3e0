"""Endpoints, tasks and deliveries without a server; the deliver worker runs when a test says so."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from app.database.engine import Database
from app.models import Delivery, DeliveryAttempt, Task, WebhookEndpoint
from app.services import Services
from app.tasks.order_schemas import TaskCreate
from app.webhooks.schemas import EndpointCreate
from app.workers.deliver import deliver_loop
from app.workers.runner import Loop, run_loop, wake_when_due
from tests.support.clock import Clock
from tests.support.rows import create_task
from tests.support.service import services_of


@dataclass
class Outbox:
    """What a test stores, delivers and reads."""

    services: Services
    loop: Loop[Any]

    @property
    def database(self) -> Database:
        return self.services.database

    async def add_endpoint(self, key_id: str, url: str, **fields: Any) -> WebhookEndpoint:
        async with self.database.writes.begin() as session:
            body = EndpointCreate(url=url, **fields)
            return await self.services.webhook_lifecycle.create_endpoint(
                session, key_id, body, await self.database.now(session)
            )

    async def create_task(self, key_id: str, webhook_url: str | None = None) -> Task:
        async with self.database.writes.begin() as session:
            now = await self.database.now(session)
            return await create_task(session, self.services.lifecycle, key_id, _body(webhook_url), now)

    async def create_canceled_task(self, key_id: str, webhook_url: str | None = None) -> Task:
        """The shortest way to a final event."""
        async with self.database.writes.begin() as session:
            now = await self.database.now(session)
            task = await create_task(session, self.services.lifecycle, key_id, _body(webhook_url), now)
            self.services.lifecycle.cancel(session, task, now)
        return task

    async def attempt_due(self) -> int:
        """Make one attempt at each delivery that is due; return how many they were."""
        claimed = await self.loop.claim(self.loop.concurrency)
        await asyncio.gather(*(self.loop.work(item) for item in claimed.items))
        return len(claimed.items)

    async def deliveries(self) -> Sequence[Delivery]:
        """Every delivery, oldest first."""
        async with self.database.reads() as session:
            return (await session.scalars(select(Delivery).order_by(Delivery.id))).all()

    async def attempts(self) -> Sequence[DeliveryAttempt]:
        """Every attempt, oldest first."""
        async with self.database.reads() as session:
            return (await session.scalars(select(DeliveryAttempt).order_by(DeliveryAttempt.id))).all()

    async def endpoint(self, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint as it is stored now."""
        async with self.database.reads() as session:
            return await session.get_one(WebhookEndpoint, endpoint_id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the worker until the block ends."""
        stopping = asyncio.Event()
        watch = wake_when_due([self.loop], self.database, stopping)
        task = asyncio.gather(run_loop(self.loop, stopping), watch)
        try:
            yield
        finally:
            stopping.set()
            await asyncio.wait([task], timeout=1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def outbox_of(database_url: str, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Outbox]:
    """The outbox of this database; receivers may be on loopback."""
    async with services_of(database_url, clock, **settings) as services:
        yield Outbox(services, deliver_loop(services))


def _body(webhook_url: str | None) -> TaskCreate:
    return TaskCreate(prompt="rain", webhook_url=webhook_url, metadata={})
