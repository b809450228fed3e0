"""The sandbox as an ASGI app and as a process: prints its address, aborts connections on demand, stops at once."""

import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.sandbox import api_routes, inspection, media_routes
from app.sandbox.callbacks import CallbackSender
from app.sandbox.fault_responses import ABORT_EXTENSION, NoResponse, envelope_response
from app.sandbox.journal import JournalMiddleware
from app.sandbox.state import Sandbox, SandboxOptions
from app.sandbox.validation import ApiError

_LINGER_ZERO = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


def create_sandbox(options: SandboxOptions) -> FastAPI:
    """
    Create a stand-in upstream as an ASGI app with a state of its own.

    The server must run its lifespan, which starts and stops the callback sender.
    """
    app = FastAPI(title="Soundpost sandbox", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.sandbox = Sandbox(options)
    app.add_middleware(JournalMiddleware, journal=app.state.sandbox.journal)
    app.add_exception_handler(ApiError, _handle_api_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    for module in (api_routes, media_routes, inspection):
        app.include_router(module.router)
    return app


class SandboxServer(uvicorn.Server):
    """A server that wakes all waiting requests when it stops, and knows its URL once it has started."""

    def __init__(self, options: SandboxOptions, host: str, port: int) -> None:
        app = create_sandbox(options)
        self._sandbox: Sandbox = app.state.sandbox
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=_AbortableProtocol,
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
        """The base URL, with the port that the system chose."""
        return _url_of(self.servers[0].sockets[0])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wake all waiting requests, then stop."""
        self._sandbox.stop()
        await super().shutdown(sockets)


def run_sandbox(options: SandboxOptions, listener: socket.socket | None = None) -> None:
    """
    Serve until SIGTERM or SIGINT, and return. Runs in the main thread of a process.

    Prints `sandbox listening on http://HOST:PORT`; without a listening socket it takes a
    free port of 127.0.0.1.
    """
    # These handlers end the process before the server installs its own, and again after the server has
    # stopped, when it raises the captured signal once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with suppress(_StopSignal), listener or socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"sandbox listening on {_url_of(listening)}", flush=True)  # noqa: T201 - callers wait for this line
        SandboxServer(options, "127.0.0.1", 0).run([listening])


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with CallbackSender(app.state.sandbox) as app.state.callback_sender:
        yield


async def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this class alone
    return envelope_response(request, error.code, message=error.message)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return NoResponse()


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    if request.url.path.startswith("/api/"):
        return envelope_response(request, 404)
    return PlainTextResponse(error.detail, error.status_code)


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _AbortableProtocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {ABORT_EXTENSION: self._abort}

    def _abort(self, hard: bool) -> None:
        if not hard or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.transport.abort()


class _StopSignal(SystemExit):
    """SIGTERM or SIGINT arrived."""


def _stop(*_: object) -> None:
    raise _StopSignal(0)
