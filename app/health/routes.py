"""Liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Annotated

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from app.health.checks import Check, State, kind_of, readiness_checks, run_checks, worst
from app.observability.metrics import Metrics
from app.services import Services
from app.web.openapi import response_headers
from app.web.provided import provided
from app.web.routing import Router

router = Router(tags=["health"])


class Readiness(BaseModel):
    """The result of every check, and the worst state of all."""

    status: State = Field(description="The worst state of all checks.", examples=["degraded"])
    checks: dict[str, Check] = Field(
        description="The checks by name: `database` and `storage`, and, while the database answers, `queue`, `submits`,"
        " `overdue`, `webhooks` and `secret_keys`; or `process` alone, while the process is stopping.",
        examples=[{"overdue": {"status": "degraded", "detail": "overdue: 12 tasks; does a worker run?"}}],
    )


class ReadinessProbe:
    """Runs the checks of readiness once in `fresh_for`, whoever asks and however many."""

    fresh_for = timedelta(seconds=1)

    def __init__(self, services: Services) -> None:
        self._checks = readiness_checks(services.database, services.storage, services.settings, services.keyring)
        self._lock = asyncio.Lock()
        self._latest: Readiness | None = None
        self._stale_at = 0.0
        self._is_draining = False

    def begin_draining(self) -> None:
        """The process is to stop: from now on it is not ready, whatever the checks say."""
        self._is_draining = True

    async def read(self) -> Readiness:
        """The result of the checks; those who ask meanwhile wait for the same ones."""
        if self._is_draining:
            stopping = Check(status="down", detail="the process is stopping: send new requests elsewhere")
            return Readiness(status="down", checks={"process": stopping})
        async with self._lock:
            if self._latest is None or time.monotonic() >= self._stale_at:
                checks = {name: check async for name, check in run_checks(self._checks, kind_of)}
                self._latest = Readiness(status=worst(checks), checks=checks)
                self._stale_at = time.monotonic() + self.fresh_for.total_seconds()
            return self._latest


@router.get(
    "/livez",
    operation_id="isAlive",
    summary="Check liveness",
    response_description="The process is running.",
)
async def livez() -> dict[str, str]:
    """Check that the process answers requests; nothing else is checked."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Check readiness",
    responses={
        200: {"headers": response_headers("Cache-Control")},
        503: {
            "model": Readiness,
            "description": "The database, its schema or the storage fails, or the process is stopping.",
            "headers": response_headers("Cache-Control"),
        },
    },
)
async def readyz(response: Response, probe: Annotated[ReadinessProbe, provided(ReadinessProbe)]) -> Readiness:
    """
    Check whether this instance can accept requests.

    The response is 503 only if the database, its schema or the storage fails, or if the process is stopping. A held
    queue or overdue work is `degraded` and 200, because callbacks must still come in. The result is at most a second
    old.
    """
    readiness = await probe.read()
    response.status_code = 503 if readiness.status == "down" else 200
    response.headers["Cache-Control"] = "no-store"
    return readiness


@router.get("/metrics", operation_id="getMetrics", include_in_schema=False)
async def get_metrics(metrics: Annotated[Metrics, provided(Metrics)]) -> Response:
    """The metrics of this process in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
