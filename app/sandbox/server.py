"""The sandbox as a process: it tells its address, breaks connections when asked to, and stops at once."""

import signal
import socket
import struct
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.sandbox.app import create_sandbox
from app.sandbox.fault_responses import SEVER
from app.sandbox.options import SandboxOptions
from app.sandbox.state import Sandbox

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


class SandboxServer(uvicorn.Server):
    """A server that ends what its app keeps waiting, and knows its own address once it has started."""

    def __init__(self, options: SandboxOptions, host: str, port: int) -> None:
        app = create_sandbox(options)
        self._sandbox: Sandbox = app.state.sandbox
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=_BreakableProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer or drop what waits, then stop."""
        self._sandbox.stop()
        await super().shutdown(sockets)


class _TalkingServer(SandboxServer):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"sandbox listening on {self.url}", flush=True)  # noqa: T201 - what starters wait for


class _BreakableProtocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {SEVER: self._sever}

    def _sever(self, hard: bool) -> None:
        if not hard or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()


def run_sandbox(options: SandboxOptions, host: str = "127.0.0.1", port: int = 0) -> None:
    """
    Serve until SIGTERM or SIGINT, and return. Runs in the main thread of a process.

    Prints `sandbox listening on http://HOST:PORT` once it accepts connections; port 0 takes a free one.
    """
    # Until the server listens to signals these end the process; after it, the server raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with suppress(_Stopped):
        _TalkingServer(options, host, port).run()


class _Stopped(SystemExit):
    """The process was asked to end."""


def _stop(*_: object) -> None:
    raise _Stopped(0)
