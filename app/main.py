"""Where the parts are joined: the web application, its loops, and their orderly end."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import structlog
from fastapi import Depends, FastAPI

from app import __version__, health
from app.auth.api_keys import keep_configured_keys
from app.callbacks import routes as callbacks
from app.clips import routes as clips
from app.config import Settings
from app.database.engine import Database
from app.database.pg_notify import PostgresNotifier
from app.database.wakeups import Wakeups
from app.dropin import routes as dropin
from app.dropin.callbacks import publish_to_callback_url
from app.dropin.middleware import VendorEnvelopeMiddleware
from app.egress import guarded_client, upstream_client
from app.keyring import load_or_create_keyring
from app.observability.metrics import Metrics
from app.services import Services
from app.signed_urls import load_signed_urls
from app.storage.store import Storage
from app.tasks import event_stream, payloads, usage
from app.tasks import routes as tasks
from app.tasks.latency import RetryAfterEstimate
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.waiting import Waiters
from app.upstream import routes as upstream
from app.upstream.credits import CreditsCache
from app.upstream.pacing import Pacer
from app.upstream.suno.client import Upstream
from app.web import EdgeMiddleware, heads_of, install_error_handlers, problems
from app.web.deferred import DeferredResponses
from app.web.negotiation import check_accept
from app.web.openapi import complete_document
from app.webhooks import deliveries, openapi
from app.webhooks import routes as webhooks
from app.webhooks.service import Webhooks
from app.workers.archive import archive_loop
from app.workers.deliver import deliver_loop
from app.workers.periodic import periodic_loop, prepare_jobs
from app.workers.poll import poll_loop
from app.workers.remove_files import erase_loop
from app.workers.runner import Loop, insist, run_loop
from app.workers.submit import submit_loop

log = structlog.get_logger()

# A start waits so long for a database before it goes on without; readiness tells until it is there.
DATABASE_TIMEOUT = 5.0
# The share of the grace that requests and loops get; the rest is for closing what they used.
USABLE_GRACE = 0.8


def create_app(settings: Settings, *, runs_loops: bool = True) -> FastAPI:
    """Join the service. Nothing is connected and nothing runs before its lifespan begins."""
    services = join(settings)
    app = FastAPI(
        title="Soundpost",
        version=__version__,
        summary="Orders sounds from a paid upstream and loses none of them.",
        lifespan=_lifespan(services, runs_loops),
        redirect_slashes=False,
    )
    app.state.settings, app.state.database, app.state.keyring = settings, services.database, services.keyring
    app.state.lifecycle, app.state.wakeups, app.state.metrics = services.lifecycle, services.wakeups, Metrics()
    app.state.webhooks, app.state.storage, app.state.signed_urls = (
        services.webhooks,
        services.storage,
        services.signed_urls,
    )
    app.state.latency = RetryAfterEstimate()
    app.state.credits_cache = CreditsCache(services.database, services.pacer, services.upstream)
    app.state.waiters = Waiters(services.database, services.wakeups, services.signed_urls)
    for room in (tasks, event_stream, usage, webhooks, deliveries, upstream):
        for router in (room.router, heads_of(room.router)):
            app.include_router(router, dependencies=[Depends(check_accept)])
    for room in (clips, callbacks, dropin, health, problems):
        app.include_router(room.router)
        app.include_router(heads_of(room.router))
    app.webhooks.include_router(openapi.described(payloads.receive_task_webhook, payloads.SUMMARIES))
    app.webhooks.include_router(openapi.described(openapi.receive_endpoint_webhook, openapi.SUMMARIES))
    install_error_handlers(app)
    complete_document(app, settings.models)
    app.add_middleware(DeferredResponses)
    app.add_middleware(EdgeMiddleware)
    app.add_middleware(VendorEnvelopeMiddleware)
    return app


def join(settings: Settings) -> Services:
    """Make every part once. Raises KeyringUnusable."""
    keyring = load_or_create_keyring(settings)
    database = Database(settings.database_url)
    key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else ""
    http = upstream_client(settings.upstream_url, key, settings.upstream_call_timeout)
    signed_urls = load_signed_urls(settings)
    return Services(
        settings=settings,
        database=database,
        keyring=keyring,
        wakeups=Wakeups(database),
        lifecycle=make_lifecycle(settings),
        pacer=Pacer(settings.upstream_rate, hold=settings.submit_lease),
        upstream_http=http,
        upstream=Upstream(http, settings.upstream_call_timeout),
        webhooks=Webhooks(settings),
        signed_urls=signed_urls,
        storage=Storage(settings.storage_url),
        egress_http=guarded_client(settings.egress_allow, settings.webhook_timeout),
    )


def make_lifecycle(settings: Settings) -> TaskLifecycle:
    """The writer of tasks, which tells callers of either API what they asked to hear. Raises KeyringUnusable."""
    return TaskLifecycle(
        settings, load_signed_urls(settings), publishers=(payloads.publish_to_webhook_url, publish_to_callback_url)
    )


async def run_worker(settings: Settings) -> None:
    """Run the loops alone until a signal says stop."""
    stopping = asyncio.Event()
    with stop_at_signal(stopping):
        async with _running(join(settings), stopping, runs_loops=True):
            await stopping.wait()


@contextmanager
def stop_at_signal(stopping: asyncio.Event) -> Iterator[None]:
    """
    Set the event at the first SIGTERM or SIGINT, before whoever handled them until now does the same as before.

    The server would tell us only after its last request has ended, and those that
    wait for news must end because of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = before[signal.Signals(number)]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lifespan(services: Services, runs_loops: bool) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stopping = app.state.stopping = asyncio.Event()
        with stop_at_signal(stopping):
            async with _running(services, stopping, runs_loops), app.state.waiters.checked():
                yield

    return lifespan


@asynccontextmanager
async def _running(services: Services, stopping: asyncio.Event, runs_loops: bool) -> AsyncIterator[None]:
    preparing = asyncio.create_task(_prepare(services))
    background: list[asyncio.Task[None]] = [preparing]
    await asyncio.wait(background, timeout=DATABASE_TIMEOUT)
    if preparing.done():
        preparing.result()
    if runs_loops:
        background += [asyncio.create_task(loop) for loop in _loops(services, stopping)]
    relay = PostgresNotifier(services.wakeups, services.database)
    relay.start()
    stopped_at: list[float] = []
    watch = asyncio.create_task(_note_stop(stopping, stopped_at, services.wakeups))
    try:
        yield
    finally:
        stopping.set()
        await watch
        # Where the database never came, the next start prepares it.
        preparing.cancel()
        remaining = stopped_at[0] + services.settings.grace.total_seconds() * USABLE_GRACE - time.monotonic()
        await asyncio.wait(background, timeout=max(0.0, remaining))
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await relay.close()
        await services.upstream_http.aclose()
        await services.egress_http.aclose()
        await services.database.close()


async def _prepare(services: Services) -> None:
    async def prepare() -> None:
        async with services.database.writes.begin() as session:
            now = await services.database.now(session)
            await services.pacer.prepare(session, now)
            await prepare_jobs(session, now)
        if services.settings.api_keys:
            await keep_configured_keys(services.database, services.settings.api_keys.get_secret_value())

    await insist(prepare)


def _loops(services: Services, stopping: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
    loops: list[Loop[Any]] = [
        submit_loop(services),
        poll_loop(services),
        deliver_loop(services),
        periodic_loop(services),
    ]
    loops += [archive_loop(services), erase_loop(services)]
    return [run_loop(loop, stopping) for loop in loops]


async def _note_stop(stopping: asyncio.Event, stopped_at: list[float], wakeups: Wakeups) -> None:
    await stopping.wait()
    stopped_at.append(time.monotonic())
    wakeups.close()
