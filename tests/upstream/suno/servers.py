"""Small real servers that stand in for the upstream on loopback, and do to a connection what they are told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Behaviour = Callable[["Wire"], Awaitable[None]]


@dataclass
class Wire:
    """One connection: read the request from it, write what should come back."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: "Server"

    async def read_request(self) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self.server.requests.append(head + await self.reader.readexactly(int(lengths[0]) if lengths else 0))
        self.server.was_asked.set()

    async def send(self, *services: bytes) -> None:
        for part in services:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self, status: int, body: bytes, *headers: bytes) -> None:
        lines = [b"HTTP/1.1 %d Some" % status, b"Content-Length: %d" % len(body), b"Connection: close", *headers]
        await self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)


@dataclass
class Server:
    """Where to reach it, and the requests that it has read."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[Server]:
    """Serve every connection with one behaviour until the block ends."""
    known = Server()
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        # Clients go away in the middle, as these tests want them to.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await behave(Wire(reader, writer, known))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    known.port = server.sockets[0].getsockname()[1]
    try:
        yield known
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers)
        await server.wait_closed()


def answering(status: int, body: bytes, *headers: bytes) -> Behaviour:
    """Read the request, then answer it like a proper server."""

    async def behave(wire: Wire) -> None:
        await wire.read_request()
        await wire.answer(status, body, *headers)

    return behave


async def hang(wire: Wire) -> None:
    """Read the request, and never answer."""
    await wire.read_request()
    await asyncio.Event().wait()


async def keep_silent(_wire: Wire) -> None:
    """Take the connection, and neither read nor answer."""
    await asyncio.Event().wait()


async def refuse_plainly(wire: Wire) -> None:
    """Answer without encryption, whatever was asked."""
    await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def close_at_once(_wire: Wire) -> None:
    """Take the connection, and close it without reading."""


async def reset_after_reading(wire: Wire) -> None:
    """Read the request, then reset the connection."""
    await wire.read_request()
    wire.writer.transport.abort()


async def reset_mid_answer(wire: Wire) -> None:
    """Send less of an answer than announced, then close."""
    await wire.read_request()
    await wire.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"code":200,"data":{"taskId":"abc"}}')


async def drip(wire: Wire) -> None:
    """Answer byte by byte, each soon enough for a timeout of single reads, and never to an end."""
    await wire.read_request()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await wire.send(b" ")
        await asyncio.sleep(0.02)


async def talk_nonsense(wire: Wire) -> None:
    """Answer with something that is not HTTP."""
    await wire.read_request()
    await wire.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
