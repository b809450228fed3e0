"""A running sandbox, a client of it, and a caller that hears its callbacks."""

import asyncio
import json
import ssl
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import uvicorn

from app.sandbox import SandboxOptions, SandboxServer

Asgi = Callable[..., Awaitable[Any]]


class CallbackReceiver:
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
async def serving_receiver(*answers: int) -> AsyncIterator[CallbackReceiver]:
    """A caller that listens."""
    receiver = CallbackReceiver(*answers)
    config = uvicorn.Config(receiver, port=0, lifespan="off", log_level="warning", access_log=False)
    async with serving(uvicorn.Server(config)) as base:
        receiver.url = f"{base}/callbacks/0123abcd/secret-token"
        yield receiver


FAST = SandboxOptions(delay=0.06, rate=100_000, credits=1e6, callback_retry_delays=(0.02, 0.02, 60))


@asynccontextmanager
async def running_sandbox(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a sandbox of its own, which is quick unless told otherwise."""
    server = SandboxServer(replace(FAST, **options), "127.0.0.1", 0)
    async with serving(server) as base, client_of(base) as client:
        yield client


@contextmanager
def sandbox_in_thread() -> Iterator[str]:
    """A quick sandbox that outlives the loop of one test."""
    server = SandboxServer(FAST, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield server.url
    server.should_exit = True
    thread.join()


def client_of(base: str) -> httpx.AsyncClient:
    """A client that has the key."""
    key = {"Authorization": "Bearer sandbox"}
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the usual one takes longer to load than most tests to run
    few = httpx.Limits(max_connections=10)  # a large pool is slow
    return httpx.AsyncClient(
        base_url=base, headers=key, trust_env=False, verify=no_tls, limits=few, timeout=httpx.Timeout(10, pool=None)
    )


async def eventually(condition: Callable[[], Any], within: float = 10) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def unreachable_url() -> str:
    """A new callback URL that leads nowhere."""
    return f"http://soundpost.invalid/callbacks/{uuid.uuid4().hex}/secret"


async def submit(
    client: httpx.AsyncClient, prompt: str = "soft rain", within: float = 10, **fields: Any
) -> httpx.Response:
    """Ask for a sound. The callback URL leads nowhere unless one is given."""
    body = {"prompt": prompt, "model": "V5", "callBackUrl": unreachable_url(), **fields}
    return await client.post("/api/v1/generate/sounds", json=body, timeout=within)


async def create_task(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> str:
    """Ask for a sound and return the task's id."""
    answer = (await submit(client, prompt, **fields)).json()
    assert answer["code"] == 200, answer
    return str(answer["data"]["taskId"])


async def poll(client: httpx.AsyncClient, task_id: str, within: float = 10) -> Any:
    """One record-info envelope."""
    query = {"taskId": task_id}
    return (await client.get("/api/v1/generate/record-info", params=query, timeout=within)).json()


async def poll_until_final(client: httpx.AsyncClient, task_id: str, *, status: str | None = None) -> Any:
    """The record-info data of a task once it is over, or has this status."""
    running = ("PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS")
    deadline = time.monotonic() + 10
    data = (await poll(client, task_id))["data"]
    while data["status"] in running or data["status"] != (status or data["status"]):
        assert time.monotonic() < deadline, data
        await asyncio.sleep(0.01)
        data = (await poll(client, task_id))["data"]
    return data


async def tasks_for(client: httpx.AsyncClient, callback_url: str) -> list[Any]:
    """The tasks that the sandbox has created, and charged, for this callback URL."""
    return [task for task in (await client.get("/tasks")).json() if task["callback_url"] == callback_url]


def codes(*answers: httpx.Response) -> list[int]:
    """The codes in these envelopes."""
    return [answer.json()["code"] for answer in answers]
