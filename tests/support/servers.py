"""A uvicorn server inside the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from tests.support.wait import eventually


@asynccontextmanager
async def serving(server: uvicorn.Server, *listeners: socket.socket) -> AsyncIterator[str]:
    """Serve until the block ends; yields the URL."""
    job = asyncio.create_task(server._serve(list(listeners) or None))
    await eventually(lambda: server.started or job.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await job
