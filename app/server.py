"""The HTTP server that runs the application: its socket, its worker processes, and how it stops."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing import parent_process

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.config import Settings, SettingsUnusable
from app.lifecycle import STAY
from app.main import create_app, create_worker_app
from app.observability.logging import configure_logging
from app.observability.multiprocess import count_in, shared_folder
from app.observability.tracing import is_tracing_wanted, start_tracing
from app.services import build_services, read_secrets
from app.web import HttpProtocol

log = structlog.get_logger()

# The fraction of the grace period that responses may still take. The rest is for workers and connections.
RESPONSE_SHARE = 0.6

# A server process that does not answer its parent for so long is replaced. It answers from when it has imported the
# application, which takes a slow core more than uvicorn's five seconds.
PROCESS_TIMEOUT = timedelta(seconds=60)
# How often a server that stops looks for its processes and for further signals.
LOOK_EVERY = timedelta(seconds=0.1)


def serve(settings: Settings, bound: socket.socket, workers: int, *, runs_workers: bool) -> None:
    """
    Serve on a listening socket until SIGTERM or SIGINT. Prints the URL.

    `workers` is the number of server processes that share the port. `runs_workers` says
    whether each of them also submits, polls, archives and delivers.
    """
    print(f"soundpost listening on http://{_authority(bound)}", flush=True)  # noqa: T201 - the line that supervisors wait for
    if workers == 1:
        _run(_config(partial(make_app, settings, runs_workers), settings), bound)
        return
    configure_logging(settings)
    with shared_folder() as folder:
        config = _config(partial(make_app, settings, runs_workers, folder), settings, workers)
        supervisor = Supervisor(config, [bound], settings)
        supervisor.run()
    if supervisor.has_failed:
        sys.exit(STARTUP_FAILURE)


def run_worker(settings: Settings, bound: socket.socket) -> None:
    """Run the workers until SIGTERM or SIGINT, and say on a listening socket whether they are well. Prints the URL."""
    if is_tracing_wanted():
        start_tracing()
    print(f"soundpost worker listening on http://{_authority(bound)}", flush=True)  # noqa: T201 - as above
    _run(_config(lambda: create_worker_app(build_services(settings)), settings), bound)


def _config(factory: Callable[[], FastAPI], settings: Settings, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        factory,
        factory=True,
        workers=workers,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # A pipelined request begins in the task of the one before it, whose caller and id are not its own.
        reset_contextvars=True,
        timeout_worker_healthcheck=int(PROCESS_TIMEOUT.total_seconds()),
        # No route depends on the caller's address or scheme, so X-Forwarded-* headers are not trusted.
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(settings.grace.total_seconds() * RESPONSE_SHARE)),
    )


def _run(config: uvicorn.Config, bound: socket.socket) -> None:
    # Uvicorn raises the signal again once it has stopped, which would kill the process: a clean stop must exit with 0.
    signal.signal(signal.SIGTERM, _ignore)
    signal.signal(signal.SIGINT, _ignore)
    uvicorn.Server(config).run([bound])


def make_app(settings: Settings, runs_workers: bool, metrics_folder: str | None = None) -> FastAPI:
    """Build the application of one server process, with its own services and log; the folder is for several."""
    configure_logging(settings)
    if metrics_folder is not None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        count_in(metrics_folder)
    if is_tracing_wanted():
        start_tracing()
    app = create_app(build_services(settings), runs_workers=runs_workers)
    # A full look of the collector takes 60 ms with all that is there from now on, in which nothing is answered.
    gc.freeze()
    return app


class Supervisor(Multiprocess):
    """
    Replaces server processes that ended, or that did not answer within PROCESS_TIMEOUT.

    Uvicorn's own waits for the answer of one process after the other: for so long it sees no signal, and
    neither that another process has ended nor, if that happens while it waits, that this one has.
    """

    has_failed = False

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], settings: Settings) -> None:
        super().__init__(config, sockets)
        # Each process that is started gets them as they are then.
        self._settings = settings
        # The time of the question that a process has not answered yet, on the monotonic clock.
        self._asked_at: dict[Process, float] = {}

    def handle_signals(self) -> None:
        """SIGHUP stays blocked here, so that no process is born without: each lets it in once it can heed it."""
        if signal.sigtimedwait({signal.SIGHUP}, 0):
            self.handle_hup()
        super().handle_signals()

    def handle_hup(self) -> None:
        """Have every process read its secrets again; uvicorn's own would replace the processes."""
        try:
            fresh, _ = read_secrets(self._settings)
        except SettingsUnusable as error:
            log.error("secrets_not_renewed", problem=str(error), advice=STAY)
            return
        self._settings.take_secrets(fresh)
        for process in self.processes:
            if process.process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGHUP)

    def keep_subprocess_alive(self) -> None:
        """Look at every process once, without waiting for any."""
        for index, process in enumerate(self.processes):
            problem = self._problem_of(process)
            if problem is None:
                continue
            self._asked_at.pop(process, None)
            process.kill()
            process.join()
            log.warning("server_process_replaced", problem=problem, exit_code=process.exitcode, pid=process.pid)
            if process.exitcode == STARTUP_FAILURE:
                # The next one would fail as it did.
                self.has_failed = True
                self.should_exit.set()
                return
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def join_all(self) -> None:
        """Wait until every process has ended; pass a further signal on, which ends their drain delay."""
        while running := [process for process in self.processes if process.process.is_alive()]:
            if self.signal_queue:
                self.signal_queue.clear()
                for process in running:
                    process.process.terminate()
            time.sleep(LOOK_EVERY.total_seconds())
        super().join_all()

    def _problem_of(self, process: Process) -> str | None:
        if not process.process.is_alive():
            return "it ended"
        if process.parent_conn.poll():
            process.parent_conn.recv()
            self._asked_at.pop(process, None)
        if process not in self._asked_at:
            process.parent_conn.send(b"ping")
            self._asked_at[process] = time.monotonic()
        is_late = time.monotonic() - self._asked_at[process] > PROCESS_TIMEOUT.total_seconds()
        return f"no answer within {PROCESS_TIMEOUT.total_seconds():.0f} s" if is_late else None


def _end_with_parent() -> None:
    """Stop as at SIGTERM once the parent is gone: nobody could stop this process, and none start at its port."""
    if parent := parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _authority(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ignore(*_: object) -> None:
    pass
