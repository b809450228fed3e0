"""The joined service without its server: tasks that take steps, and a deliver loop that is turned by hand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from app.config import Settings
from app.database.base import new_id
from app.database.engine import Session, database_clock
from app.models import ApiKey, Delivery, DeliveryAttempt, Task, WebhookEndpoint
from app.services import Services, build_services
from app.tasks.schemas import TaskCreate
from app.webhooks.schemas import EndpointCreate
from app.workers.deliver import deliver_loop
from app.workers.runner import Loop, run_loop

SECRET_KEY = "a-key-of-the-tests-long-enough"


@dataclass
class HandClock:
    """A clock that goes on when it is told to."""

    time: datetime = field(default_factory=lambda: datetime(2026, 11, 1, 12, tzinfo=UTC))

    async def __call__(self, _: Session) -> datetime:
        return self.time


@dataclass
class Service:
    """What a test does with the service."""

    services: Services
    loop: Loop[Any]

    async def now(self) -> datetime:
        async with self.services.database.reads() as session:
            return await self.services.database.now(session)

    async def add_key(self, name: str = "tester") -> str:
        async with self.services.database.writes.begin() as session:
            key = ApiKey(id=new_id(), name=name, key_hash=new_id(), created_at=await self.now_in(session))
            session.add(key)
        return key.id

    async def add_endpoint(self, key_id: str, url: str, **order: Any) -> WebhookEndpoint:
        async with self.services.database.writes.begin() as session:
            now = await self.now_in(session)
            return self.services.webhook_lifecycle.create_endpoint(
                session, key_id, EndpointCreate(url=url, **order), now
            )

    async def order(self, key_id: str, webhook_url: str | None = None, prompt: str = "rain") -> Task:
        async with self.services.database.writes.begin() as session:
            return self.services.lifecycle.create(
                session, key_id, _order(webhook_url, prompt), await self.now_in(session)
            )

    async def order_and_cancel(self, key_id: str, webhook_url: str | None = None) -> Task:
        """The shortest way to a final event."""
        async with self.services.database.writes.begin() as session:
            now = await self.now_in(session)
            task = self.services.lifecycle.create(session, key_id, _order(webhook_url), now)
            self.services.lifecycle.cancel(session, task, now)
        return task

    async def now_in(self, session: Session) -> datetime:
        return await self.services.database.now(session)

    async def turn(self) -> int:
        """Make one attempt at what is due; return how many they were."""
        claimed = await self.loop.claim(self.loop.concurrency)
        await asyncio.gather(*(self.loop.work(item) for item in claimed.items))
        return len(claimed.items)

    async def deliveries(self) -> Sequence[Delivery]:
        async with self.services.database.reads() as session:
            return (await session.scalars(select(Delivery).order_by(Delivery.id))).all()

    async def attempts(self) -> Sequence[DeliveryAttempt]:
        async with self.services.database.reads() as session:
            return (await session.scalars(select(DeliveryAttempt).order_by(DeliveryAttempt.id))).all()

    async def endpoint(self, endpoint_id: str) -> WebhookEndpoint:
        async with self.services.database.reads() as session:
            endpoint = await session.get(WebhookEndpoint, endpoint_id)
            assert endpoint is not None
            return endpoint

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the deliver loop run by itself."""
        stopping = asyncio.Event()
        task = asyncio.create_task(run_loop(self.loop, stopping))
        try:
            yield
        finally:
            stopping.set()
            await asyncio.wait([task], timeout=1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def joined(database_url: str, clock: HandClock | None = None, **settings: Any) -> AsyncIterator[Service]:
    """The service on this database, its receivers on loopback."""
    chosen = Settings.model_validate(
        {
            "database_url": database_url,
            "secret_keys": SECRET_KEY,
            "egress_allow": "127.0.0.0/8",
            "upstream_url": "http://127.0.0.1:9",
            **settings,
        }
    )
    services = build_services(chosen, clock or database_clock)
    try:
        yield Service(services, deliver_loop(services))
    finally:
        await services.close()


def _order(webhook_url: str | None, prompt: str = "rain") -> TaskCreate:
    return TaskCreate(prompt=prompt, webhook_url=webhook_url, metadata={})
