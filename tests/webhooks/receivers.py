"""A caller's receiver: a small real server on loopback that answers what it is told and remembers what it got."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Received:
    """One request, with its body in the bytes that came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(frozen=True)
class Reply:
    """What to answer; a status of 0 is no answer at all."""

    status: int = 204
    headers: tuple[str, ...] = ()
    body: bytes = b""
    delay: float = 0


HANG = Reply(0)
Decide = Callable[[Received], Reply]


@dataclass
class Receiver:
    """What it got, and how it decides what to answer."""

    decide: Decide
    port: int = 0
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def answer(self, *replies: Reply | int) -> None:
        """Give these answers in turn, the last of them from then on."""
        self.decide = in_turn(replies)

    async def until(self, count: int, within: float = 20.0) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(within):
            while len(self.received) < count:
                self._came.clear()
                await self._came.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        self.received.append(request)
        self._came.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self.decide(request)
            if reply is HANG:
                await asyncio.Event().wait()
            await asyncio.sleep(reply.delay)
            lines = [f"HTTP/1.1 {reply.status} Some", f"Content-Length: {len(reply.body)}", "Connection: close"]
            writer.write("\r\n".join([*lines, *reply.headers, "", ""]).encode() + reply.body)
            await writer.drain()
        finally:
            self.at_once -= 1


def in_turn(replies: Iterable[Reply | int]) -> Decide:
    """Answer each request with the next of these, and with the last one for ever."""
    left = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@asynccontextmanager
async def receiving(*replies: Reply | int, port: int = 0) -> AsyncIterator[Receiver]:
    """Receive until the block ends."""
    receiver = Receiver(in_turn(replies or (204,)))
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await receiver.serve(reader, writer)
        writer.close()
        handlers.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        remaining = list(handlers)
        for handler in remaining:
            handler.cancel()
        await asyncio.gather(*remaining)
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Received:
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(start.split(" ")[1], headers, body, time.monotonic())
