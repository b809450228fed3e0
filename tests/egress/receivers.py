"""Small real servers on loopback, in the place of what callers name: they remember who came."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_network

from app.egress import Networks, Resolver

LOOPBACK: Networks = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
SOON = timedelta(seconds=5)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """Where it listens, how many connections it has seen, and the heads of the requests that it has read."""

    port: int = 0
    connections: int = 0
    heads: list[str] = field(default_factory=list)

    def url(self, host: str = "127.0.0.1", path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def receiving(
    answer: bytes | Behaviour = OK, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """Listen until the block ends, giving every request the same answer."""
    receiver = Receiver()
    conversations: list[asyncio.Task[None]] = []

    def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(asyncio.create_task(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        try:
            while True:
                receiver.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                await (_say(answer, writer) if isinstance(answer, bytes) else answer(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(welcome, host, port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
    for conversation in conversations:
        conversation.cancel()
    await asyncio.gather(*conversations, return_exceptions=True)


async def _say(answer: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(answer)
    await writer.drain()


@contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """Let connects to this place go unanswered: its queue is full, so that the kernel drops what else arrives."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        yield


def answering(status: int, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of an answer."""
    lines = [f"HTTP/1.1 {status} Some", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def names(known: Mapping[str, Sequence[str]]) -> Resolver:
    """A resolver that knows these names and no others."""

    async def resolve(host: str) -> Sequence[str]:
        if host not in known:
            raise OSError("unknown")
        return known[host]

    return resolve
