"""A running sandbox, a client of it, and a caller that hears its callbacks."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

from app.sandbox import SandboxOptions, SandboxServer

Asgi = Callable[..., Awaitable[Any]]


class Caller:
    """A backend's callback URL: answers what it is told, remembers what it got."""

    def __init__(self, *answers: int) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._answers = iter(answers)

    async def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": next(self._answers, 200), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def messages(self) -> list[Any]:
        return [json.loads(body) for body in self.bodies]

    @property
    def types(self) -> list[str]:
        return [message["data"]["callbackType"] for message in self.messages]


@asynccontextmanager
async def serving(server: uvicorn.Server) -> AsyncIterator[str]:
    """Serve on a free port of this machine, inside the test's own loop."""
    job = asyncio.create_task(server._serve())
    await eventually(lambda: server.started or job.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await job


@asynccontextmanager
async def calling(*answers: int) -> AsyncIterator[Caller]:
    """A caller that listens."""
    caller = Caller(*answers)
    config = uvicorn.Config(caller, port=0, lifespan="off", log_level="warning", access_log=False)
    async with serving(uvicorn.Server(config)) as base:
        caller.url = f"{base}/callbacks/0123abcd/secret-token"
        yield caller


@asynccontextmanager
async def sandboxed(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a sandbox that is as fast as can be, with its key."""
    given = {"delay": 0.06, "rate": 1000, "callback_retry_delays": (0.02, 0.02, 0.02), **options}
    async with (
        serving(SandboxServer(SandboxOptions(**given), "127.0.0.1", 0)) as base,
        httpx.AsyncClient(
            base_url=base, headers={"Authorization": "Bearer sandbox"}, trust_env=False, timeout=10
        ) as client,
    ):
        yield client


async def eventually(condition: Callable[[], Any], within: float = 10) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


async def submit(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> httpx.Response:
    """Ask for a sound. The callback URL leads nowhere unless one is given."""
    body = {"prompt": prompt, "model": "V5", "callBackUrl": "http://soundpost.invalid/callbacks/t1/secret", **fields}
    return await client.post("/api/v1/generate/sounds", json=body)


async def created(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> str:
    """Ask for a sound and return the task's id."""
    answer = (await submit(client, prompt, **fields)).json()
    assert answer["code"] == 200, answer
    return str(answer["data"]["taskId"])


async def poll(client: httpx.AsyncClient, task_id: str) -> Any:
    """One record-info envelope."""
    return (await client.get("/api/v1/generate/record-info", params={"taskId": task_id})).json()


async def finished(client: httpx.AsyncClient, task_id: str) -> Any:
    """The record-info data of a task once it is over."""
    deadline = time.monotonic() + 10
    while True:
        data = (await poll(client, task_id))["data"]
        if not (data["status"] == "PENDING" or data["status"] in ("TEXT_SUCCESS", "FIRST_SUCCESS")):
            return data
        assert time.monotonic() < deadline, data
        await asyncio.sleep(0.01)
