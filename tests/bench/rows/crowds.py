"""Many that wait for one task: long polls and event streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.keyring import Keyring
from tests.bench.client import connect, request_bytes
from tests.bench.messages import PLACE, callback_body
from tests.bench.report import Figure
from tests.bench.servers import Server
from tests.bench.stand import Stand, owner_in
from tests.support.filling import fill_generating
from tests.support.settings import KEY, SECRET_KEY
from tests.support.wait import eventually

# The targets of a crowd of a thousand and of ten thousand: seconds until the last is answered, and until a callback is
# that comes while they arrive.
MANY = 10_000
LAST, ACKNOWLEDGED = {False: 0.3, True: 2.0}, {False: 0.5, True: 2.0}
KIB = 20
GROUP = 250
WAIT = {"Prefer": "wait=60"}
JSON = {"Content-Type": "application/json"}
STREAM = {"Accept": "text/event-stream"}
# What the answer of a wait and an event of a stream say at the end.
END = b"succeeded"
OK = b"HTTP/1.1 200 "
# Seconds until an answer counts as one that never comes.
PATIENCE = 30.0


def waiters(stand: Stand) -> list[Figure]:
    """One callback for a crowd that waits (--crowd 10000): the last answer, and the memory of each."""
    return _measure(stand, "waiter", "/v1/tasks/{}", WAIT)


def streams(stand: Stand) -> list[Figure]:
    """The same with event streams."""
    return _measure(stand, "stream", "/v1/tasks/{}/events", STREAM)


def arrivals(stand: Stand) -> list[Figure]:
    """A callback that comes while a crowd of waits arrives."""
    crowd, is_large = stand.size.crowd, stand.size.crowd >= MANY
    took = []
    with _service(stand, 1 + stand.size.rounds) as service:
        for number in stand.rounds(1 if is_large else 5):
            took.append(asyncio.run(_interrupt(service, crowd, 2 + number)))
            service.settle(60)
    how = f"{crowd:,} waits arrive at once"
    return [Figure("callback → its 200 among arrivals", took, "s", how, at_most=ACKNOWLEDGED[is_large])]


@dataclass(frozen=True)
class Crowd:
    """Seconds from a callback to the last and the middle answer, KiB of each, and CPU in seconds."""

    last: float
    half: float
    kib: float
    service: float
    client: float
    lost: int


@dataclass
class _Waiting(asyncio.Protocol):
    """One connection that waits; `ended` is when the end of the task was read, `is_lost` whether it never can be."""

    request: bytes
    transport: asyncio.Transport | None = None
    answer: bytes = b""
    ended: float = 0
    is_lost: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self) -> None:
        """Send the request."""
        assert self.transport is not None
        self.transport.write(self.request)

    def close(self) -> None:
        """Close without further ado."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if not self.ended and END in self.answer:
            self.ended = time.monotonic()
        self.is_lost = self.is_lost or not self.answer.startswith(OK)

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = not self.ended


def _measure(stand: Stand, kind: str, path: str, headers: Mapping[str, str]) -> list[Figure]:
    crowd, is_large = stand.size.crowd, stand.size.crowd >= MANY
    rounds = []
    for _ in stand.rounds(1 if is_large else 3):
        with _service(stand, 1) as service:
            rounds.append(asyncio.run(_end_one(service, crowd, path.format(_task_id(1)), headers)))
    own, client = max(each.service for each in rounds), max(each.client for each in rounds)
    how = f"{crowd:,} at once; CPU of the service {own:.2f} s, of the client {client:.2f} s"
    if lost := max(each.lost for each in rounds):
        how += f"; **{lost} refused or never answered**"
    return [
        Figure(f"one callback → the last {kind}", [each.last for each in rounds], "s", how, at_most=LAST[is_large]),
        Figure(f"one callback → half of the {kind}s", [each.half for each in rounds], "s"),
        Figure(f"memory of an idle {kind}", [each.kib for each in rounds], "KiB", "with its connection", at_most=KIB),
    ]


async def _end_one(service: Server, crowd: int, path: str, headers: Mapping[str, str]) -> Crowd:
    """Let a crowd wait for the first task, and end that by a callback."""
    before = service.resident_kib()
    with _closed_at_the_end() as waiting:
        # They come in groups: how a service takes all of them at once is another row.
        for _ in range(0, crowd, GROUP):
            await _join(service, waiting, GROUP, path, headers)
            for each in waiting[-GROUP:]:
                each.send()
            await asyncio.to_thread(service.settle, 60)
        kib = (service.resident_kib() - before) / crowd
        cpu, own, called = service.cpu(), time.process_time(), time.monotonic()
        await _call_back(service, 1)
        with suppress(AssertionError):
            await eventually(lambda: all(each.ended or each.is_lost for each in waiting), within=PATIENCE)
        took = sorted(each.ended - called if each.ended else PATIENCE for each in waiting if not each.is_lost)
        lost = sum(each.is_lost or not each.ended for each in waiting)
        return Crowd(took[-1], took[len(took) // 2], kib, service.cpu() - cpu, time.process_time() - own, lost)


async def _interrupt(service: Server, crowd: int, number: int) -> float:
    """Let a crowd of waits arrive; return the seconds that a callback takes meanwhile."""
    with _closed_at_the_end() as waiting:
        await _join(service, waiting, crowd, f"/v1/tasks/{_task_id(1)}", WAIT)
        for each in waiting:
            each.send()
        # The client's loop has handed them to the kernel.
        await asyncio.sleep(0)
        began = time.monotonic()
        await _call_back(service, number)
        return time.monotonic() - began


@contextmanager
def _closed_at_the_end() -> Iterator[list[_Waiting]]:
    """A list of connections."""
    waiting: list[_Waiting] = []
    try:
        yield waiting
    finally:
        for one in waiting:
            one.close()


async def _join(service: Server, waiting: list[_Waiting], count: int, path: str, headers: Mapping[str, str]) -> None:
    """Add connections that have sent nothing yet."""
    request = request_bytes("GET", path, {"Authorization": f"Bearer {KEY}", **headers})
    port, loop = urlsplit(service.url).port or 80, asyncio.get_running_loop()
    for _ in range(count):
        _, one = await loop.create_connection(lambda: _Waiting(request), "127.0.0.1", port)
        waiting.append(one)


async def _call_back(service: Server, number: int) -> None:
    """Send the last callback of a task."""
    task_id = _task_id(number)
    path = f"/callbacks/{task_id}/{Keyring(SECRET_KEY).callback_token(task_id)}"
    body = callback_body("complete").replace(PLACE, task_id)
    connection = await connect(service.url)
    status, answer = await connection.exchange(request_bytes("POST", path, JSON, body))
    connection.close()
    if status != 200:
        raise SystemExit(f"a callback was answered with {status}: {answer.decode()}")


@contextmanager
def _service(stand: Stand, tasks: int) -> Iterator[Server]:
    """A service with its loops, and so many tasks that wait for their callbacks."""
    with stand.running("crowd") as service:
        url = service.database_url
        owner = owner_in(url)
        stand.fill(lambda database: fill_generating(database, [owner], tasks), url)
        service.settle()
        yield service


def _task_id(number: int) -> str:
    """The id that fill_generating gives."""
    return f"3{number:031x}"
