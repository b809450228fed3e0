"""What an upstream may do to a connection; each takes over one that was just opened."""

import asyncio
from contextlib import AbstractAsyncContextManager

from tests.support.receivers import Behaviour, Connection, Receiver, receiving


def serving(behave: Behaviour) -> AbstractAsyncContextManager[Receiver]:
    """Treat every connection in one way."""
    return receiving(connected=behave)


def answering(status: int, body: bytes, *headers: bytes) -> Behaviour:
    """Read the request, answer it in full, and close."""
    lines = [b"HTTP/1.1 %d Some" % status, b"Content-Length: %d" % len(body), b"Connection: close", *headers]

    async def behave(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"\r\n".join([*lines, b"", body]))

    return behave


async def hang(connection: Connection) -> None:
    """Read the request, and never answer."""
    await connection.read_request()
    await asyncio.Event().wait()


async def keep_silent(_: Connection) -> None:
    """Take the connection, and neither read nor answer."""
    await asyncio.Event().wait()


async def refuse_plainly(connection: Connection) -> None:
    """Answer without encryption, whatever was asked."""
    await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def close_at_once(_: Connection) -> None:
    """Take the connection, and close it without reading."""


async def reset_after_reading(connection: Connection) -> None:
    """Read the request, then reset the connection."""
    await connection.read_request()
    connection.writer.transport.abort()


async def reset_mid_answer(connection: Connection) -> None:
    """Send less of an answer than announced, then close."""
    await connection.read_request()
    await connection.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"code":200,"data":{"taskId":"abc"}}')


async def drip(connection: Connection) -> None:
    """Answer byte by byte, each soon enough for a timeout of single reads, and never to an end."""
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await connection.send(b" ")
        await asyncio.sleep(0.02)


async def talk_nonsense(connection: Connection) -> None:
    """Answer with something that is not HTTP."""
    await connection.read_request()
    await connection.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
