"""The service inside the test's own process: served on a free port, or its parts alone."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from sqlalchemy import select

from app.auth.api_keys import create_key
from app.database.engine import Database, database_clock
from app.enums import TaskStatus
from app.main import create_app
from app.models import ApiKey, Task
from app.services import Services, build_services
from app.web import HttpProtocol
from tests.support.api import Json, client_of, create_task
from tests.support.clock import MORNING, Clock
from tests.support.rows import add_task
from tests.support.sandbox import journal, serve_sandbox
from tests.support.servers import serving
from tests.support.settings import LOOPBACK, settings_of


@dataclass(frozen=True)
class Service:
    """A running service, a client of it that has a key, one that has none, and one of its upstream."""

    services: Services
    client: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    upstream: httpx.AsyncClient

    @property
    def database(self) -> Database:
        return self.services.database

    def callback_path(self, task_id: str) -> str:
        """Where the upstream calls back for this task."""
        return f"/callbacks/{task_id}/{self.services.keyring.callback_token(task_id)}"

    async def add_task(self, status: TaskStatus = TaskStatus.queued, **columns: Any) -> Task:
        """Add a task of the client's key with this status."""
        async with self.database.reads() as session:
            key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "tests"))).one()
        return await add_task(self.database, key_id, status, **columns)

    async def create_task(self, prompt: str = "soft rain", **fields: Any) -> str:
        """Create a task by the API; return its id."""
        return str((await create_task(self.client, prompt, **fields))["id"])

    async def task(self, task_id: str) -> Json:
        """The task as the API shows it."""
        task: Json = (await self.client.get(f"/v1/tasks/{task_id}")).raise_for_status().json()
        return task

    async def until(self, task_id: str, is_reached: Callable[[Json], bool], within: float = 60) -> Json:
        """Return the task once it is as wanted."""
        deadline = time.monotonic() + within
        while not is_reached(task := await self.task(task_id)):
            assert time.monotonic() < deadline, task
            await asyncio.sleep(0.05)
        return task

    async def archived(self, prompt: str = "soft rain", within: float = 60, **fields: Any) -> Json:
        """Create a task; return it once it has succeeded and all of its audio is stored."""
        return await self.until(await self.create_task(prompt, **fields), is_archived, within)

    async def downloads(self) -> list[Json]:
        """The requests for audio that the sandbox has received."""
        entries = await journal(str(self.upstream.base_url), kind="request")
        return [entry for entry in entries if entry["path"].startswith("/audio/")]


async def client_with_key(service: Service, name: str, *, is_admin: bool = False) -> httpx.AsyncClient:
    """A client of the service with a new key of this name."""
    async with service.database.writes.begin() as session:
        key = await create_key(session, name, MORNING, is_admin=is_admin)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=service.client.base_url, headers=headers, trust_env=False, timeout=30)


def is_archived(task: Json) -> bool:
    """Whether a task has succeeded and all of its audio is stored."""
    return task["status"] == "succeeded" and all(clip["archived_at"] for clip in task["clips"])


@asynccontextmanager
async def serve(database_url: str, *, runs_workers: bool = False, **settings: Any) -> AsyncIterator[Service]:
    """Serve on a free port, which is the public URL too unless another is given."""
    # asyncio sends small writes at once only where a socket names its protocol.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        services = build_services(settings_of(database_url, **{"public_url": url, **settings}))
        app = create_app(services, runs_workers=runs_workers)
        config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="on", log_config=None, access_log=False)
        config.reset_contextvars = True
        async with (
            serving(uvicorn.Server(config), listener),
            client_of(url) as client,
            client_of(url, None) as anonymous,
            client_of(services.settings.upstream_url, None) as upstream,
        ):
            yield Service(services, client, anonymous, upstream)


@asynccontextmanager
async def serve_with_sandbox(
    database_url: str, folder: Path, *, sandbox: Json | None = None, **settings: Any
) -> AsyncIterator[Service]:
    """Serve with workers and a sandbox of these options; audio is stored in `folder`/audio."""
    async with serve_sandbox(**(sandbox or {})) as upstream_url:
        given = {
            "upstream_url": upstream_url,
            "upstream_rate": "1000/10",
            "egress_allow": LOOPBACK,
            "storage_url": f"file:{folder}/audio",
            "grace": 1,
            **settings,
        }
        async with serve(database_url, runs_workers=True, **given) as service:
            yield service


@asynccontextmanager
async def services_of(database_url: str, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Services]:
    """The parts of the service, of which none runs; egress to loopback is allowed."""
    chosen = settings_of(database_url, **{"egress_allow": LOOPBACK, **settings})
    services = build_services(chosen, clock or database_clock)
    try:
        yield services
    finally:
        await services.close()
