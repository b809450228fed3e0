"""The web server around the application: how connections are received, shared among processes, and ended."""

from __future__ import annotations

import signal
import socket
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from app.config import Settings
from app.main import create_app
from app.observability.logging import configure_logging
from app.services import build_services
from app.web import HttpProtocol

# The share of the grace that clients get to take their answers; closing what is behind them needs the rest.
CLIENTS_GRACE = 0.6


class PortTaken(Exception):
    """The address cannot be listened on."""


def serve(settings: Settings, host: str, port: int, workers: int, *, runs_workers: bool) -> None:
    """Serve until a signal ends it. Prints the address once it accepts connections. Raises PortTaken."""
    config = uvicorn.Config(
        partial(make_app, settings, runs_workers),
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here depends on who or where a proxy says that the caller is.
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(settings.grace.total_seconds() * CLIENTS_GRACE)),
    )
    bound = _bind(host, port)
    print(f"soundpost listening on http://{_authority(bound)}", flush=True)  # noqa: T201 - what starters wait for
    if workers > 1:
        Multiprocess(config, [bound]).run()
        return
    # The server raises the signal again once it has stopped; having stopped as asked is a success.
    signal.signal(signal.SIGTERM, _do_nothing)
    signal.signal(signal.SIGINT, _do_nothing)
    uvicorn.Server(config).run([bound])


def make_app(settings: Settings, runs_workers: bool) -> FastAPI:
    """What each server process begins with."""
    configure_logging(settings)
    return create_app(build_services(settings), runs_workers=runs_workers)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise PortTaken(f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with --port.") from None
    bound.set_inheritable(True)
    return bound


def _authority(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _do_nothing(*_: object) -> None:
    pass
