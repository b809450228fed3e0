"""The web application: its routes, its middleware and its OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import httpx
from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from app import __version__
from app.auth import routes as audit
from app.budgets import routes as budgets
from app.callbacks import routes as callbacks
from app.clips import routes as clips
from app.console import mount
from app.dropin import routes as dropin
from app.dropin.middleware import VendorEnvelopeMiddleware
from app.fast_path import FastPath
from app.health import routes as health
from app.health.draining import CloseWhileDraining
from app.health.metrics import MetricsPage
from app.lifecycle import running
from app.observability.tracing import tracer_provider
from app.services import Services
from app.tasks import event_stream, events
from app.tasks import routes as tasks
from app.tasks.links import routes as links
from app.tasks.links.reading import check_links
from app.upstream import routes as upstream
from app.web import EdgeMiddleware, TolerantPaths, install_error_handlers, problems
from app.web.cors import CrossOriginReads
from app.web.deferred import DeferredResponses
from app.web.middleware import PROBES
from app.web.negotiation import check_accept, check_query
from app.web.openapi import complete_document
from app.web.prefix import PrefixMiddleware, prefix_of
from app.web.provided import provide
from app.web.routing import Router
from app.webhooks import openapi
from app.webhooks import routes as webhooks


def create_app(services: Services, *, runs_workers: bool = True) -> FastAPI:
    """Build the application. Nothing connects and no worker runs until its lifespan starts."""
    probe = health.ReadinessProbe(services)
    app = FastAPI(
        title="Soundpost",
        version=__version__,
        summary="Submits tasks to a paid sound API and loses none of them.",
        lifespan=_lifespan(services, runs_workers, probe),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry=_telemetry(),
    )
    every = [getattr(services, field.name) for field in fields(services)]
    # Routes send no HTTP requests, and the two clients are of one class.
    provide(app, probe, MetricsPage(services), *(each for each in every if not isinstance(each, httpx.AsyncClient)))
    rooms = [room.router for room in (tasks, event_stream, links, webhooks, upstream, audit)]
    for router in (*rooms, budgets.router):
        app.include_router(router, dependencies=[Depends(check_accept), Depends(check_query)])
    app.include_router(clips.router, dependencies=[Depends(check_query)])
    start = Router()
    start.add_api_route("/", _get_start, methods=["GET"], include_in_schema=False)
    app.include_router(start)
    for room in (callbacks, dropin, health, mount, problems):
        app.include_router(room.router)
    app.webhooks.include_router(openapi.documented_routes(events.receive_task_webhook, events.SUMMARIES))
    app.webhooks.include_router(openapi.documented_routes(openapi.receive_endpoint_webhook, openapi.SUMMARIES))
    app.webhooks.include_router(openapi.documented_routes(events.receive_budget_webhook, events.BUDGET_SUMMARIES))
    if services.settings.console:
        app.router.routes.extend(mount.console_routes(app.state.provided))
    install_error_handlers(app)
    complete_document(app, list(services.settings.models))
    # The last of these is the outermost.
    plain = services.database, services.signed_urls, services.callbacks, services.orders, services.waiters
    app.add_middleware(FastPath, *plain, services.last_uses)
    app.add_middleware(DeferredResponses)
    check = check_links(services.signed_urls)
    app.add_middleware(EdgeMiddleware, observe=services.metrics.requests.observe, check=check)
    app.add_middleware(CrossOriginReads, origins=services.settings.cors_origins)
    app.add_middleware(VendorEnvelopeMiddleware)
    app.add_middleware(TolerantPaths)
    if prefix := prefix_of(services.settings.link_base):
        app.servers = [{"url": services.settings.link_base}]
        app.add_middleware(PrefixMiddleware, prefix=prefix)
    app.add_middleware(CloseWhileDraining, is_draining=lambda: probe.is_draining)
    return app


def create_worker_app(services: Services) -> FastAPI:
    """Build what `soundpost worker` serves: whether it is well, and its metrics. The workers run with its lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # No drain delay: nobody sends requests here that others could answer.
        async with running(services, runs_workers=True):
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False, telemetry=_telemetry())
    provide(app, health.ReadinessProbe(services), MetricsPage(services))
    app.include_router(health.router)
    install_error_handlers(app)
    app.add_middleware(EdgeMiddleware)
    return app


def _telemetry() -> TelemetryConfig:
    """The framework's own spans, one for each request but probes; where there is no tracing, nothing of it."""
    provider = tracer_provider()
    return TelemetryConfig(
        tracer_provider=provider,
        tracing=provider is not None,
        # The spans within a request would be more than all others.
        operation_spans=False,
        # These are Prometheus's, and our own.
        metrics=False,
        logs=False,
        auto_configure=False,
        exclude=lambda scope: scope["path"] in PROBES,
    )


async def _get_start() -> dict[str, str]:
    """What this is, and where its documents are, for whoever opens the bare address."""
    places = {"docs": "docs", "openapi": "openapi.json", "ready": "readyz"}
    return {"service": "Soundpost", "version": __version__, **places}


def _lifespan(services: Services, runs_workers: bool, probe: health.ReadinessProbe) -> Any:
    prefix = prefix_of(services.settings.link_base)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        background = running(services, runs_workers=runs_workers, drain=probe.begin_draining)
        async with background, services.waiters.checked():
            # The state of each connection: the server answers by itself what is no request.
            yield {"prefix": prefix}

    return lifespan
