"""Rows that tests store and read, past the API."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import select

from app.budgets.booking import book
from app.database.engine import Database, Session
from app.dropin.callbacks import publish_to_callback_url
from app.enums import Charge, TaskStatus
from app.keyring import load_or_create_keyring
from app.models import ApiKey, Event, Task
from app.observability.metrics import Metrics
from app.signed_urls import SignedUrls
from app.tasks.events import EventRecorder, publish_to_webhook_url
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.order_schemas import TaskCreate
from app.tasks.queue.insertion import Order
from app.tasks.transitions import FINAL
from tests.support.clock import MORNING
from tests.support.settings import settings_of

Value = TypeVar("Value")


def stored(database_url: str, fill: Callable[[Database], Awaitable[Value]]) -> Value:
    """Store rows from a test that has no event loop; return what `fill` returns."""

    async def run() -> Value:
        database = Database(database_url)
        try:
            return await fill(database)
        finally:
            await database.close()

    return asyncio.run(run())


def lifecycle_of(database: Database, **settings: Any) -> TaskLifecycle:
    """The writer of tasks as the service builds it, without all the rest."""
    chosen = settings_of(database.url, **settings)
    signed_urls = SignedUrls(load_or_create_keyring(chosen), chosen.link_base, chosen.link_ttl)
    rng = random.Random(0)  # noqa: S311 - spreads retries, not for security
    publishers = publish_to_webhook_url, publish_to_callback_url
    return TaskLifecycle(chosen, EventRecorder(signed_urls, publishers, chosen.webhook_schedule[0], Metrics()), rng)


async def add_key(database: Database, name: str = "tests") -> str:
    """Add an API key; return its id."""
    async with database.writes.begin() as session:
        key = ApiKey(name=name, key_hash=f"hash of {name}", created_at=MORNING)
        session.add(key)
    return key.id


async def add_task(
    database: Database, api_key_id: str, status: TaskStatus = TaskStatus.queued, now: datetime = MORNING, **columns: Any
) -> Task:
    """Add a task with this status, due at once unless it is final."""
    was_sent = status is not TaskStatus.queued
    is_due = status not in FINAL
    columns = {
        "status": status,
        "charge": Charge.charged if was_sent else Charge.none,
        "submitted_at": now if was_sent else None,
        "due_at": now if is_due else None,
        "completed_at": None if is_due else now,
        **columns,
    }
    async with database.writes.begin() as session:
        body = TaskCreate.model_validate({"prompt": "soft rain", "metadata": columns.pop("labels", {})})
        task = await create_task(session, lifecycle_of(database), api_key_id, body, now)
        for name, value in columns.items():
            setattr(task, name, value)
        task.booked, task.reserved_at = book(session, task, now, is_final=task.status in FINAL)
    return task


async def create_task(
    session: Session, lifecycle: TaskLifecycle, api_key_id: str, body: TaskCreate, now: datetime
) -> Task:
    """Order a task in this transaction."""
    [created] = await lifecycle.create(session, [Order(api_key_id, body)], now)
    return await session.get_one(Task, created.id)


async def reread(database: Database, task_id: str) -> Task:
    """The task as it is stored now."""
    async with database.reads() as session:
        return await session.get_one(Task, task_id)


async def event_types(database: Database, task_id: str) -> list[str]:
    """The types of a task's events, oldest first."""
    async with database.reads() as session:
        events = await session.scalars(select(Event).where(Event.task_id == task_id).order_by(Event.version))
        return [event.type.value for event in events]
