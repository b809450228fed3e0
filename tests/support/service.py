"""The service inside the test's own process: its parts, its rows, and a server on a free port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from app.config import Settings
from app.database.engine import Database
from app.enums import Charge, TaskStatus
from app.main import create_app
from app.models import ApiKey, Event, Task
from app.services import Services, build_services
from app.tasks.schemas import TaskCreate
from app.tasks.transitions import FINAL
from app.web import HttpProtocol
from tests.support.processes import KEY, SECRET_KEY, UPSTREAM_KEY, eventually

NOBODY = "http://127.0.0.1:9"  # the discard port, where nobody listens
MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)


def settings_of(database_url: str, **settings: Any) -> Settings:
    """Settings for tests; no .env is read."""
    given: dict[str, Any] = {
        "_env_file": None,
        "database_url": database_url,
        "upstream_url": NOBODY,
        "upstream_api_key": UPSTREAM_KEY,
        "public_url": "https://sounds.example",
        "secret_keys": SECRET_KEY,
        "api_keys": f"tests:{KEY}",
        **settings,
    }
    return Settings(**given)


@dataclass(frozen=True)
class Service:
    """A running application, a client of it that has a key, and the database under it."""

    app: FastAPI
    services: Services
    client: httpx.AsyncClient

    @property
    def database(self) -> Database:
        return self.services.database

    def callback_path(self, task_id: str) -> str:
        """Where the upstream was told to call for this task."""
        return f"/callbacks/{task_id}/{self.services.keyring.callback_token(task_id)}"

    async def task(self, status: TaskStatus = TaskStatus.queued, **columns: Any) -> Task:
        """A task of the client's key that has come so far."""
        async with self.database.reads() as session:
            key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "tests"))).one()
        return await add_task(self.database, key_id, status, **columns)


@asynccontextmanager
async def inside(database_url: str, *, runs_workers: bool = False, **settings: Any) -> AsyncIterator[Service]:
    """Serve on a free port, which is the public URL too unless another is given."""
    # asyncio sends small writes at once only where a socket names its protocol.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        services = build_services(settings_of(database_url, **{"public_url": url, **settings}))
        app = create_app(services, runs_workers=runs_workers)
        config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="on", log_config=None, access_log=False)
        async with (
            _serving(uvicorn.Server(config), listener),
            httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30
            ) as client,
        ):
            yield Service(app, services, client)


@asynccontextmanager
async def _serving(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    job = asyncio.create_task(server._serve([listener]))
    await eventually(lambda: server.started or job.done())
    try:
        yield
    finally:
        server.should_exit = True
        await job


class Clock:
    """The time that a database is told."""

    def __init__(self, now: datetime = MORNING) -> None:
        self.now = now

    async def __call__(self, _session: object) -> datetime:
        return self.now

    def advance(self, **span: float) -> None:
        self.now += timedelta(**span)


async def add_key(database: Database, name: str = "tests") -> str:
    """Make a caller; return its id."""
    async with database.writes.begin() as session:
        key = ApiKey(name=name, key_hash=f"hash of {name}", created_at=MORNING)
        session.add(key)
    return key.id


async def add_task(
    database: Database, api_key_id: str, status: TaskStatus = TaskStatus.queued, now: datetime = MORNING, **columns: Any
) -> Task:
    """Keep an order, and put its task this far on in its life."""
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
        wanted = TaskCreate.model_validate({"prompt": "soft rain"})
        task = build_services(settings_of(database.url)).lifecycle.create(session, api_key_id, wanted, now)
        for name, value in columns.items():
            setattr(task, name, value)
    return task


async def reread(database: Database, task_id: str) -> Task:
    """The task as it is stored now."""
    async with database.reads() as session:
        return await session.get_one(Task, task_id)


async def event_types(database: Database, task_id: str) -> list[str]:
    """The types of a task's events, oldest first."""
    async with database.reads() as session:
        events = await session.scalars(select(Event).where(Event.task_id == task_id).order_by(Event.version))
        return [event.type.value for event in events]
