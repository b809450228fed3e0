"""Small real HTTP servers on loopback: they answer as a test says and remember what they received."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import standardwebhooks


@dataclass(frozen=True)
class Received:
    """One request: its head as it came, what that says, and the bytes of its body."""

    path: str
    headers: dict[str, str]
    head: str
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Connection:
    """One connection to a receiver."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    receiver: "Receiver"

    async def read_request(self) -> Received:
        """Read one request and remember it. Raises IncompleteReadError once the client has closed."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(start.split(" ")[1], headers, head, body)
        self.receiver.add(request)
        return request

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def close(self) -> None:
        """End the connection, although less was sent than announced."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection by a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


# What a receiver does with a request once it is read, or with a connection.
Behaviour = Callable[[Connection], Awaitable[None]]


@dataclass(frozen=True)
class Reply:
    """A complete answer, sent after `delay` seconds."""

    status: int = 204
    headers: tuple[str, ...] = ()
    body: bytes = b""
    delay: float = 0

    async def __call__(self, connection: Connection) -> None:
        await asyncio.sleep(self.delay)
        lines = [f"HTTP/1.1 {self.status} Some", f"Content-Length: {len(self.body)}", *self.headers]
        await connection.send("\r\n".join([*lines, "", ""]).encode() + self.body)


async def hang(_: Connection) -> None:
    """Never answer."""
    await asyncio.Event().wait()


@dataclass
class Receiver:
    """Where it listens, how it answers, and what it has received."""

    respond: Callable[[Received], Behaviour]
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    max_at_once: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return self.url_at()

    def url_at(self, path: str = "", host: str = "127.0.0.1") -> str:
        """The URL of a path here, or by another name of the host."""
        return f"http://{host}:{self.port}{path}"

    def answer(self, *replies: Behaviour | int) -> None:
        """Give these answers in turn from now on, then the last of them for ever."""
        self.respond = _in_turn(replies)

    def add(self, request: Received) -> None:
        self.requests.append(request)
        self._arrived.set()

    async def until(self, count: int, within: float = 20) -> None:
        """Wait until that many requests have arrived."""
        async with asyncio.timeout(within):
            while len(self.requests) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def converse(self, connection: Connection) -> None:
        """Answer one request after the other until the client closes."""
        while True:
            request = await connection.read_request()
            self.at_once += 1
            self.max_at_once = max(self.max_at_once, self.at_once)
            try:
                await self.respond(request)(connection)
            finally:
                self.at_once -= 1


@asynccontextmanager
async def receiving(
    *replies: Behaviour | int,
    connected: Behaviour | None = None,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    """
    Listen until the block ends, giving these answers in turn, then the last of them for ever; without any, 204.

    A number is a Reply with that status. `connected` takes over whole connections
    instead, before anything is read.
    """
    receiver = Receiver(_in_turn(replies or (204,)))
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        receiver.connections += 1
        # Clients go away in the middle, as some tests want them to.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await (connected or receiver.converse)(Connection(reader, writer, receiver))
        writer.close()
        handlers.discard(task)

    server = await asyncio.start_server(handle, host, 0, ssl=tls)
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


def verifies(secret: str, request: Received) -> bool:
    """Whether the request is signed with this webhook secret."""
    try:
        standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


@contextmanager
def full_backlog(host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The URL of a socket that neither accepts nor refuses: its queue is full, and the kernel drops what arrives."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        address: tuple[str, int] = listener.getsockname()
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"http://{address[0]}:{address[1]}"


def _in_turn(replies: Iterable[Behaviour | int]) -> Callable[[Received], Behaviour]:
    left = [Reply(reply) if isinstance(reply, int) else reply for reply in replies]
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
