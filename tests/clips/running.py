"""The service and a sandbox inside the test's own loop, on ports of their own."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.config import Settings
from app.database.engine import Database
from app.main import create_app
from app.sandbox import SandboxOptions, SandboxServer
from app.services import Services, build_services
from app.web import HttpProtocol

KEY = "the-key-of-a-caller-in-tests"
OTHER_KEY = "the-key-of-another-caller"
FINAL = frozenset({"succeeded", "failed", "canceled"})


@dataclass(frozen=True)
class Service:
    """A running service: its application, a client with a caller's key, and one without."""

    services: Services
    client: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    upstream: httpx.AsyncClient

    @property
    def database(self) -> Database:
        return self.services.database

    async def order(self, prompt: str = "soft rain", **fields: Any) -> str:
        """Order a sound; return its task's id."""
        answer = await self.client.post("/v1/tasks", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        """The task as it stands."""
        answer = await self.client.get(f"/v1/tasks/{task_id}")
        task: dict[str, Any] = answer.raise_for_status().json()
        return task

    async def until(self, task_id: str, is_reached: Callable[[Any], bool], within: float = 60) -> dict[str, Any]:
        """The task once it is as wanted."""
        deadline = time.monotonic() + within
        while not is_reached(task := await self.task(task_id)):
            assert time.monotonic() < deadline, task
            await asyncio.sleep(0.2)
        return task

    async def archived(self, prompt: str = "soft rain", within: float = 60, **fields: Any) -> dict[str, Any]:
        """A task that has succeeded and all of whose audio is ours."""
        return await self.until(await self.order(prompt, **fields), is_archived, within)

    async def downloads(self) -> list[dict[str, Any]]:
        """The requests for audio that the sandbox got."""
        entries: list[dict[str, Any]] = (await self.upstream.get("/journal", params={"kind": "request"})).json()
        return [entry for entry in entries if entry["path"].startswith("/audio/")]


def is_archived(task: Any) -> bool:
    """Whether a task has succeeded and all of its audio is ours."""
    return task["status"] == "succeeded" and all(clip["archived_at"] for clip in task["clips"])


@asynccontextmanager
async def running_service(
    database_url: str, folder: Path, *, sandbox: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Service]:
    """A service whose audio is in `folder`/audio, and the sandbox that it orders from."""
    options = {"delay": 0.1, "rate": 1000, **(sandbox or {})}
    async with serving(SandboxServer(SandboxOptions(**options), "127.0.0.1", 0)) as upstream_url:
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        given = {
            "database_url": database_url,
            "upstream_url": upstream_url,
            "upstream_api_key": "sandbox",
            "upstream_rate": "1000/10",
            "public_url": url,
            "secret_keys": "a-secret-key-of-the-tests-alone",
            "api_keys": f"tests:{KEY},others:{OTHER_KEY}",
            "egress_allow": "127.0.0.0/8",
            "storage_url": f"file:{folder}/audio",
            "grace": 1,
            **settings,
        }
        services = build_services(Settings(_env_file=None, **given))  # type: ignore[call-arg]
        app = create_app(services)
        config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="on", log_config=None)
        bearer = {"Authorization": f"Bearer {KEY}"}
        async with (
            serving(uvicorn.Server(config), listener),
            httpx.AsyncClient(base_url=url, headers=bearer, trust_env=False, timeout=20) as client,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as anonymous,
            httpx.AsyncClient(base_url=upstream_url, trust_env=False, timeout=20) as upstream,
        ):
            yield Service(services, client, anonymous, upstream)


@asynccontextmanager
async def serving(server: uvicorn.Server, *sockets: socket.socket) -> AsyncIterator[str]:
    """Serve inside the test's own loop; yields the address."""
    job = asyncio.create_task(server._serve(list(sockets) or None))
    await eventually(lambda: server.started or job.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await job


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 30) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + within
    while True:
        outcome = condition()
        if outcome if isinstance(outcome, bool) else await outcome:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)
