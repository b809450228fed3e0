"""A way to a PostgreSQL server by TCP, with TLS for those who ask for it: the tests' own server has neither."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from tests.egress.certificates import Authority

# https://www.postgresql.org/docs/current/protocol-message-formats.html
SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)


@dataclass
class Way:
    """Where to connect, what to trust, and how many connections came with and without TLS."""

    port: int
    authority: Path
    encrypted: list[bool] = field(default_factory=list)


@asynccontextmanager
async def tls_way(database_url: str, folder: Path) -> AsyncIterator[Way]:
    """Listen at localhost, as which the certificate knows it, and pass everything on to the server of this URL."""
    behind = Path(str(make_url(database_url).query["host"])) / ".s.PGSQL.5432"
    authority = Authority(folder)
    certificate = authority.server("localhost")
    carrying: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, onward_writer = await asyncio.open_unix_connection(str(behind))
        # A client may also give up after its first bytes, or because it does not believe the certificate.
        with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            first = await reader.readexactly(8)
            if first == SSL_REQUEST:
                writer.write(b"S")
                await writer.drain()
                await writer.start_tls(certificate)
                first = await reader.readexactly(8)
                way.encrypted.append(True)
            else:
                way.encrypted.append(False)
            onward_writer.write(first)
            both = [asyncio.create_task(_carry(*ends)) for ends in ((reader, onward_writer), (onward, writer))]
            carrying.update(both)
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, onward_writer):
            each.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    way = Way(server.sockets[0].getsockname()[1], authority.file)
    try:
        yield way
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
