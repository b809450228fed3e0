"""Five thousand callers may wait at one process: what each of them costs, and that a stop answers them all."""

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.running import KEY, Processes, Running, client_of, order
from tests.waiting.callers import let_others_wait

WARM_UP = 500
TASKS = 50
MOST_KIB_EACH = 20
GRACE = 30.0
FILES = 6_500


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("crowd", "path", "preference"),
    [(5_000, "", "Prefer: wait=60"), (1_000, "/events", "Accept: text/event-stream")],
)
async def test_idle_waits_take_less_than_20_kib_each(
    tmp_path: Path, database_url: str, crowd: int, path: str, preference: str
) -> None:
    with _files_allowed(), ExitStack() as stack, Processes(tmp_path, grace=str(GRACE)) as processes:
        service = await processes.serve(database_url, await processes.sandbox(), "--no-loops")
        async with client_of(service) as client:
            tasks = [(await order(client))["id"] for _ in range(TASKS)]
            requests = [_request(f"/v1/tasks/{task}{path}", preference) for task in tasks]

            async def join(newcomers: int) -> list[socket.socket]:
                callers = []
                for _ in range(newcomers // TASKS):
                    callers += [stack.enter_context(_caller(service, request)) for request in requests]
                    await let_others_wait(client)
                await _idle(service)
                return callers

            await join(WARM_UP)
            before = _memory_kib(service)
            callers = await join(crowd)
            # On a slow machine some waits have ended before the last has begun.
            waiting = sum(not _is_ended(caller) for caller in callers)
            each = (_memory_kib(service) - before) / waiting
            print(f"{waiting} idle requests with {preference!r}: {each:.1f} KiB each")
            began = time.monotonic()

            exit_code = await service.stop()

            print(f"all answered and the process ended after {time.monotonic() - began:.1f} s")
            endings = {_ending(caller) for caller in callers}
    assert waiting >= crowd / 5
    assert each < MOST_KIB_EACH
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
def _caller(service: Running, request: bytes) -> Iterator[socket.socket]:
    url = httpx.URL(service.url)
    with closing(socket.create_connection((url.host, url.port or 80))) as caller:
        caller.sendall(request)
        yield caller


def _is_ended(caller: socket.socket) -> bool:
    """Whether a caller has got an answer and is not told any more."""
    caller.setblocking(False)
    try:
        answer = caller.recv(65_536, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return b"preference-applied:" in answer


def _ending(caller: socket.socket) -> bytes:
    """The status line of what a caller got, after reading it to its end."""
    caller.settimeout(5)
    answer = b""
    while part := caller.recv(65_536):
        answer += part
    return answer.partition(b"\r\n")[0]


async def _idle(service: Running) -> None:
    """Wait until the process has taken in everybody: it needs hardly any time then."""
    while True:
        spent = _cpu_seconds(service)
        await asyncio.sleep(1)
        if _cpu_seconds(service) - spent < 0.3:
            return


def _cpu_seconds(service: Running) -> float:
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _memory_kib(service: Running) -> int:
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
