"""A client that costs little: requests are bytes made beforehand, one at a time on each connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def request_bytes(method: str, path: str, headers: Mapping[str, str] = NO_HEADERS, body: str = "") -> bytes:
    """A whole request."""
    content = body.encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class Connection:
    """One connection that is kept open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, request: bytes) -> None:
        """Send a request whose answer is read later."""
        self.writer.write(request)

    async def head(self) -> tuple[int, Mapping[str, str]]:
        """Read the status and the headers of an answer."""
        start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(start.split(" ")[1]), headers

    async def answer(self) -> tuple[int, bytes]:
        """Read a whole answer, whose length is announced."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and read its answer."""
        self.send(request)
        return await self.answer()

    def close(self) -> None:
        """Close without further ado."""
        self.writer.transport.abort()


async def connect(url: str) -> Connection:
    """Open a connection to the server at this URL."""
    parts = urlsplit(url)
    return Connection(*await asyncio.open_connection(parts.hostname, parts.port))


async def send_all(url: str, requests: Sequence[bytes], at_once: int) -> list[int]:
    """Send each request once, so many at a time; return the statuses in no order."""
    left = list(reversed(requests))
    statuses: list[int] = []

    async def work() -> None:
        connection = await connect(url)
        while left:
            statuses.append((await connection.exchange(left.pop()))[0])
        connection.close()

    await asyncio.gather(*(work() for _ in range(at_once)))
    return statuses
