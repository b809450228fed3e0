"""Liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from app.health.checks import Limits, kind_of, no_answer, readiness_checks, run_checks
from app.health.metrics import MetricsPage
from app.health.results import Check, Skipped, State, worst
from app.services import Services
from app.web.openapi import response_headers
from app.web.provided import provided
from app.web.routing import Router

router = Router(tags=["health"])


class Readiness(BaseModel):
    """The result of every check, and the worst state of all."""

    status: State = Field(description="The worst state of all checks.", examples=["degraded"])
    checks: dict[str, Check] = Field(
        description="The checks by name: `database` and `storage`; while the database answers, `migrations`; while its"
        " schema is this release's, `queue`, `submits`, `models`, `overdue`, `webhooks` and `secret_keys`. While the"
        " process is stopping, `process` alone.",
        examples=[{"storage": {"status": "ok", "detail": "a small file was written, read and removed"}}],
    )


class ReadinessProbe:
    """
    Runs the checks of readiness once in `fresh_for`, whoever asks and however many.

    Nobody waits for longer than `answer_within`, whatever hangs. Until a result is older than
    `stale_for` it is still told then, since a busy database must not take every replica out
    at once; after that, the check that does not end has failed.
    """

    fresh_for, stale_for = timedelta(seconds=1), timedelta(seconds=5)
    answer_within = timedelta(seconds=2)
    limits = Limits(each=timedelta(seconds=5), total=timedelta(seconds=8))

    def __init__(self, services: Services) -> None:
        self._checks = readiness_checks(services.database, services.storage, services.settings, services.keyring)
        self._run: asyncio.Task[Readiness] | None = None
        self._found: dict[str, Check | Skipped] = {}
        self._latest: Readiness | None = None
        self._made_at = 0.0
        self.is_draining = False

    def begin_draining(self) -> None:
        """The process is to stop: from now on it is not ready, whatever the checks say."""
        self.is_draining = True

    async def read(self) -> Readiness:
        """The result of the checks; those who ask meanwhile wait for the same ones."""
        if self.is_draining:
            stopping = Check(status="down", detail="the process is stopping: send new requests elsewhere")
            return _readiness({"process": stopping})
        if self._latest is not None and self._age() < self.fresh_for:
            return self._latest
        if self._run is None or self._run.done():
            self._run = asyncio.create_task(self._check())
        await asyncio.wait([self._run], timeout=self.answer_within.total_seconds())
        if self._run.done():
            return self._run.result()
        if self._latest is not None and self._age() < self.stale_for:
            return self._latest
        hanging = next(name for name in self._checks if name not in self._found)
        return _readiness({**self._found, hanging: no_answer(hanging, self.answer_within)})

    async def _check(self) -> Readiness:
        self._found = {}
        async for name, found in run_checks(self._checks, kind_of, self.limits):
            self._found[name] = found
        self._latest, self._made_at = _readiness(self._found), time.monotonic()
        return self._latest

    def _age(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._made_at)


def _readiness(found: Mapping[str, Check | Skipped]) -> Readiness:
    checks = {name: check for name, check in found.items() if isinstance(check, Check)}
    return Readiness(status=worst(checks), checks=checks)


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
    queue or overdue work is `degraded` and 200, because callbacks must still come in. The result is a second old at
    most, or five where the database or the storage hangs, and is there within two seconds.
    """
    readiness = await probe.read()
    response.status_code = 503 if readiness.status == "down" else 200
    response.headers["Cache-Control"] = "no-store"
    return readiness


@router.get("/metrics", operation_id="getMetrics", include_in_schema=False)
async def get_metrics(page: Annotated[MetricsPage, provided(MetricsPage)]) -> Response:
    """The metrics in Prometheus' text format: of all server processes here, and of what is stored."""
    return Response(await page.render(), media_type=CONTENT_TYPE_LATEST)
