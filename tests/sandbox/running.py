"""A running sandbox, a client of it, and a receiver of its callbacks."""

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
from tests.support.servers import serving

Asgi = Callable[..., Awaitable[Any]]


class CallbackReceiver:
    """A callback URL that responds with the given statuses, then 200, and keeps the requests."""

    def __init__(self, *statuses: int) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._statuses = iter(statuses)

    async def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": next(self._statuses, 200), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def messages(self) -> list[Any]:
        return [json.loads(body) for body in self.bodies]

    @property
    def types(self) -> list[str]:
        return [message["data"]["callbackType"] for message in self.messages]


@asynccontextmanager
async def serving_receiver(*statuses: int) -> AsyncIterator[CallbackReceiver]:
    """Serve a receiver."""
    receiver = CallbackReceiver(*statuses)
    config = uvicorn.Config(receiver, port=0, lifespan="off", log_level="warning", access_log=False)
    async with serving(uvicorn.Server(config)) as base:
        receiver.url = f"{base}/callbacks/0123abcd/secret-token"
        yield receiver


FAST = SandboxOptions(delay=0.06, rate=100_000, credits=1e6, callback_retry_delays=(0.02, 0.02, 60))


@asynccontextmanager
async def running_sandbox(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a new sandbox, which is fast unless the options change that."""
    server = SandboxServer(replace(FAST, **options), "127.0.0.1", 0)
    async with serving(server) as base, client_of(base) as client:
        yield client


@contextmanager
def sandbox_in_thread() -> Iterator[str]:
    """A fast sandbox that outlives the event loop of one test."""
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
    """A client with the key."""
    key = {"Authorization": "Bearer sandbox"}
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default context takes longer to load than most tests run
    limits = httpx.Limits(max_connections=10)  # a large pool is slow
    return httpx.AsyncClient(
        base_url=base, headers=key, trust_env=False, verify=no_tls, limits=limits, timeout=httpx.Timeout(10, pool=None)
    )


def unreachable_url() -> str:
    """A new callback URL whose host does not exist."""
    return f"http://soundpost.invalid/callbacks/{uuid.uuid4().hex}/secret"


async def submit(
    client: httpx.AsyncClient, prompt: str = "soft rain", within: float = 10, **fields: Any
) -> httpx.Response:
    """Submit a sound. The callback URL is unreachable unless one is given."""
    body = {"prompt": prompt, "model": "V5", "callBackUrl": unreachable_url(), **fields}
    return await client.post("/api/v1/generate/sounds", json=body, timeout=within)


async def create_task(client: httpx.AsyncClient, prompt: str = "soft rain", **fields: Any) -> str:
    """Submit a sound and return the task's id."""
    answer = (await submit(client, prompt, **fields)).json()
    assert answer["code"] == 200, answer
    return str(answer["data"]["taskId"])


async def poll(client: httpx.AsyncClient, task_id: str, within: float = 10) -> Any:
    """Poll once and return the envelope."""
    query = {"taskId": task_id}
    return (await client.get("/api/v1/generate/record-info", params=query, timeout=within)).json()


async def poll_until_final(client: httpx.AsyncClient, task_id: str, *, status: str | None = None) -> Any:
    """Poll until the task is final, or has this status; return the data of record-info."""
    running = ("PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS")
    deadline = time.monotonic() + 10
    data = (await poll(client, task_id))["data"]
    while data["status"] in running or data["status"] != (status or data["status"]):
        assert time.monotonic() < deadline, data
        await asyncio.sleep(0.01)
        data = (await poll(client, task_id))["data"]
    return data


async def tasks_for(client: httpx.AsyncClient, callback_url: str) -> list[Any]:
    """The tasks that the sandbox has created and charged for this callback URL."""
    return [task for task in (await client.get("/tasks")).json() if task["callback_url"] == callback_url]


def codes(*answers: httpx.Response) -> list[int]:
    """The codes in these envelopes."""
    return [answer.json()["code"] for answer in answers]
