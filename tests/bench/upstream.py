"""A small upstream in the bench's own process, which is also the audio host and the receiver of webhooks."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.bench.client import Connection, connect, request_bytes
from tests.bench.messages import KINDS, PLACE, callback_body

# Of one clip, in bytes: 0.2 s of 16-bit mono at 44.1 kHz.
SAMPLES = 17_640
# Connections that callbacks are sent on.
CALLING = 16
# Seconds until a callback that was not taken is sent again.
RETRY = 0.1
OK = "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Upstream:
    """
    What it has received, with the moments of the monotonic clock.

    `posts` and `webhooks` grow by one entry for each request. With `delays`, the three
    callbacks of a task follow its submit by so many seconds; `refused` counts those that got another answer than 200.
    """

    url: str = ""
    delays: tuple[float, ...] = ()
    posts: list[tuple[float, str]] = field(default_factory=list)
    webhooks: list[float] = field(default_factory=list)
    downloads: int = 0
    refused: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _jobs: set[asyncio.Task[None]] = field(default_factory=set)
    _idle: asyncio.LifoQueue[Connection | None] = field(default_factory=asyncio.LifoQueue)

    async def until(self, *, posts: int = 0, webhooks: int = 0, downloads: int = 0, within: float = 30) -> None:
        """Wait until so many requests of each kind have arrived."""
        async with asyncio.timeout(within):
            while len(self.posts) < posts or len(self.webhooks) < webhooks or self.downloads < downloads:
                self._arrived.clear()
                await self._arrived.wait()

    def answer(self, path: str, body: bytes) -> bytes:
        """Take note of a request, and answer it."""
        self._arrived.set()
        now = time.monotonic()
        if path.startswith("/hook"):
            self.webhooks.append(now)
            return ACCEPTED
        if path.startswith("/audio/"):
            self.downloads += 1
            return _response("audio/wav", _wav(path.rpartition("/")[2]))
        if path == "/api/v1/generate/sounds":
            callback_url = json.loads(body)["callBackUrl"]
            self.posts.append((now, callback_url))
            upstream_id = callback_url.split("/")[-2]
            if self.delays:
                self._start(callback_url, upstream_id)
            return _json({"code": 200, "msg": "success", "data": {"taskId": upstream_id}})
        return _json({"code": 200, "msg": "success", "data": 1000 if path.endswith("/credit") else None})

    def _start(self, callback_url: str, upstream_id: str) -> None:
        job = asyncio.get_running_loop().create_task(self._send_callbacks(callback_url, upstream_id))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _send_callbacks(self, url: str, upstream_id: str) -> None:
        for kind, delay in zip(KINDS, self.delays, strict=True):
            await asyncio.sleep(delay)
            request = self.callback(kind, url, upstream_id)
            while not await self._is_taken(url, request):
                pass

    async def _is_taken(self, url: str, request: bytes) -> bool:
        """Send a callback; where it is not taken, pause before the next attempt."""
        connection = await self._idle.get()
        try:
            connection = connection or await connect(url)
            status, _ = await connection.exchange(request)
        except (OSError, asyncio.IncompleteReadError):
            # The service closes connections that were not used for some seconds.
            connection, status = None, 0
        self._idle.put_nowait(connection)
        if status != 200:
            self.refused += status != 0
            await asyncio.sleep(RETRY)
        return status == 200

    def callback(self, kind: str, url: str, upstream_id: str) -> bytes:
        """The request of a callback, whose audio is served here."""
        body = callback_body(kind, self.url).replace(PLACE, upstream_id)
        return request_bytes("POST", urlsplit(url).path, {"Content-Type": "application/json"}, body)


class _Requests(asyncio.Protocol):
    """One connection: each request is answered at once, as soon as it is there."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream, self._buffer = upstream, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        missing = int(length.split(b"\r\n", 1)[0]) if length else 0
        if end and len(rest) >= missing:
            self._buffer = rest[missing:]
            self.transport.write(self._upstream.answer(head.split(b" ", 2)[1].decode(), rest[:missing]))


@asynccontextmanager
async def serving_upstream(*delays: float) -> AsyncIterator[Upstream]:
    """Listen until the block ends."""
    upstream = Upstream(delays=delays)
    for _ in range(CALLING):
        upstream._idle.put_nowait(None)
    # All of 127.0.0.0/8, so that it can be several hosts.
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Requests(upstream), "0.0.0.0", 0, backlog=1024)  # noqa: S104 - for a row
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()


def _json(value: object) -> bytes:
    return _response("application/json", json.dumps(value).encode())


def _response(kind: str, body: bytes) -> bytes:
    return OK.format(kind=kind, length=len(body)).encode() + body


def _wav(name: str) -> bytes:
    """A file that no other clip has: its name is in its first samples."""
    samples = name.encode().ljust(SAMPLES, b"\0")[:SAMPLES]
    head = (
        b"RIFF" + struct.pack("<I", 36 + SAMPLES) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 44100, 88200, 2, 16)
    )
    return head + b"data" + struct.pack("<I", SAMPLES) + samples
