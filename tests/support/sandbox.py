"""The stand-in upstream in the test's own process, and what any stand-in upstream has seen."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from app.sandbox import SandboxOptions, SandboxServer
from tests.support.api import Json, client_of
from tests.support.servers import serving

SUBMIT_PATH = "/api/v1/generate/sounds"


def serve_sandbox(**options: Any) -> AbstractAsyncContextManager[str]:
    """Serve a sandbox on a free port; yields its URL."""
    chosen = SandboxOptions(**{"delay": 0.1, "rate": 1000, **options})
    return serving(SandboxServer(chosen, "127.0.0.1", 0))


async def journal(sandbox_url: str, **filters: str) -> list[Json]:
    """What a sandbox has received and sent, oldest first; the filters are kind, path and task_id."""
    async with client_of(sandbox_url, None) as client:
        entries: list[Json] = (await client.get("/journal", params=filters)).raise_for_status().json()
        return entries


async def submits_at(sandbox_url: str) -> list[Json]:
    """The submits that a sandbox has received."""
    return await journal(sandbox_url, kind="request", path=SUBMIT_PATH)


async def control(sandbox_url: str, **controls: Any) -> None:
    """Change a sandbox while it runs, by its POST /control."""
    async with client_of(sandbox_url, None) as client:
        (await client.post("/control", json=controls)).raise_for_status()
