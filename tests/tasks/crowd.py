"""Thousands of requests that wait in one process: the memory of each, and the response to all at a stop."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import httpx

from tests.support.api import client_of, create_task, let_earlier_requests_arrive
from tests.support.processes import Process, Processes
from tests.support.settings import KEY

WARM_UP = 500
TASKS = 50
MAX_KIB_EACH = 20
GRACE = 30.0
FILES = 6_500
JOINING = 40.0
AS_STREAM = "Accept: text/event-stream"
AS_ANSWER = "Prefer: wait=60"


async def check_crowd(
    processes: Processes, database_url: str, crowd: int, path: str, preference: str, measured: Callable[[str], None]
) -> None:
    """Let so many wait at one process: each costs little, and a stop answers them all."""
    with _files_allowed(), ExitStack() as stack:
        service = await processes.serve(database_url, (await processes.sandbox()).url, "--no-loops", grace=str(GRACE))
        async with client_of(service.url) as client:
            tasks = [(await create_task(client))["id"] for _ in range(TASKS)]

            async def join(newcomers: int, requests: list[bytes]) -> list[socket.socket]:
                callers: list[socket.socket] = []
                began = time.monotonic()
                # On a slow machine fewer come: the first would have been answered before the last has asked.
                while len(callers) < newcomers and (preference == AS_STREAM or time.monotonic() - began < JOINING):
                    callers += [stack.enter_context(_caller(service, request)) for request in requests]
                    await let_earlier_requests_arrive(client)
                await _idle(service)
                return callers

            requests = [_request(f"/v1/tasks/{task}{path}", preference) for task in tasks]
            await join(WARM_UP, [_request(f"/v1/tasks/{task}/events", AS_STREAM) for task in tasks])
            await join(WARM_UP // 5, requests)
            before = service.memory_kib()
            callers = await join(crowd, requests)
            each = (service.memory_kib() - before) / len(callers)
            measured(f"{len(callers)} idle requests with {preference!r}: {each:.1f} KiB each")
            began = time.monotonic()

            exit_code = await service.stop()

            measured(f"all were answered and the process ended after {time.monotonic() - began:.1f} s")
            endings = {_ending(caller) for caller in callers}
    assert each < MAX_KIB_EACH
    assert exit_code == 0
    assert endings == {b"HTTP/1.1 200 OK"}


@contextmanager
def _files_allowed() -> Iterator[None]:
    """Allow as many connections here and in the processes that are started from here."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, FILES), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def _request(path: str, preference: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: soundpost", f"Authorization: Bearer {KEY}", preference, "", ""]
    return "\r\n".join(lines).encode()


@contextmanager
def _caller(service: Process, request: bytes) -> Iterator[socket.socket]:
    url = httpx.URL(service.url)
    with closing(socket.create_connection((url.host, url.port or 80))) as caller:
        caller.sendall(request)
        yield caller


def _ending(caller: socket.socket) -> bytes:
    """The status line of what a caller got, after reading it to its end."""
    caller.settimeout(5)
    answer = b""
    while part := caller.recv(65_536):
        answer += part
    return answer.partition(b"\r\n")[0]


async def _idle(service: Process) -> None:
    """
    Wait until the process has taken in everybody: it has hardly anything to do then.

    Processor time alone would also be low where others use the processors.
    """
    while True:
        before = service.runnable_seconds
        await asyncio.sleep(1)
        if service.runnable_seconds - before < 0.3:
            return
