"""Liveness, readiness and metrics, and the checks that readiness and `soundpost doctor` share."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Annotated, Literal

import httpx
from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.config import CALLBACKS_PATH, Settings
from app.database.claims import count_overdue
from app.database.engine import Database, reason
from app.enums import TaskStatus
from app.errors import StorageUnavailable
from app.keyring import Keyring
from app.models import Clip, PeriodicJob, Task
from app.observability.metrics import Metrics
from app.storage.store import Storage
from app.upstream.gateway import UpstreamGateway
from app.upstream.hold import EXPLANATIONS, current_hold
from app.upstream.pacing import full_share
from app.web.openapi import response_headers
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router
from app.webhooks.repository import count_overdue_deliveries, disabled_after_failures

router = Router(tags=["health"])
OVERDUE_AFTER = timedelta(seconds=60)
SHOWN_ENDPOINTS = 5
STORAGE_TIMEOUT = timedelta(seconds=5)
PUBLIC_URL_TIMEOUT = timedelta(seconds=15)
State = Literal["ok", "degraded", "down"]


class Check(BaseModel):
    """The state of one thing that the service needs."""

    status: State = Field(
        description="`ok`; `degraded`, if some work waits; or `down`, if no request can be accepted.", examples=["ok"]
    )
    detail: str = Field(
        description="What was found, and what to do about it.", examples=["overdue: 12 tasks; does a worker run?"]
    )


class Readiness(BaseModel):
    """The result of every check, and the worst state of all."""

    status: State = Field(description="The worst state of all checks.", examples=["degraded"])
    checks: dict[str, Check] = Field(
        description="The checks by name: `database` and `storage`, and, while the database answers, `queue`, `overdue`"
        " and `webhooks`.",
        examples=[{"overdue": {"status": "degraded", "detail": "overdue: 12 tasks; does a worker run?"}}],
    )


@router.get(
    "/livez",
    operation_id="isAlive",
    summary="Check liveness",
    response_description="The process is running.",
)
async def livez() -> dict[str, str]:
    """Check that the process answers requests. It looks at nothing else."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Check readiness",
    responses={
        200: {"headers": response_headers("Cache-Control")},
        503: {
            "model": Readiness,
            "description": "The database, its schema or the storage fails.",
            "headers": response_headers("Cache-Control"),
        },
    },
)
async def readyz(
    response: Response, database: DatabaseDep, storage: Annotated[Storage, provided(Storage)]
) -> Readiness:
    """
    Check whether this instance can accept requests.

    The response is 503 only if the database, its schema or the storage fails. A held
    queue or overdue work is `degraded` and 200, because callbacks must still come in.
    """
    checks = {"database": await check_database(database), "storage": await check_storage(storage)}
    if checks["database"].status == "ok":
        checks |= {name: await check(database) for name, check in DATABASE_CHECKS.items()}
    status = worst(checks)
    response.status_code = 503 if status == "down" else 200
    response.headers["Cache-Control"] = "no-store"
    return Readiness(status=status, checks=checks)


@router.get("/metrics", operation_id="getMetrics", include_in_schema=False)
async def get_metrics(metrics: Annotated[Metrics, provided(Metrics)]) -> Response:
    """The metrics of this process in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def worst(checks: Mapping[str, Check]) -> State:
    """The worst state of these checks."""
    found = {check.status for check in checks.values()}
    return "down" if "down" in found else "degraded" if "degraded" in found else "ok"


async def check_database(database: Database, *, with_reason: bool = False) -> Check:
    """
    Whether the database answers and has this release's schema.

    `with_reason` adds the driver's message, which is for operators alone: it may name hosts.
    """

    async def check() -> Check:
        if await database.is_migrated():
            return Check(status="ok", detail="it answers, and its schema is this release's")
        return Check(status="down", detail="its schema is not this release's: run `soundpost migrate`")

    return await _reached(check, with_reason=with_reason)


async def check_storage(storage: Storage) -> Check:
    """Whether the storage stores a file."""
    try:
        async with asyncio.timeout(STORAGE_TIMEOUT.total_seconds()):
            await storage.probe()
    except (StorageUnavailable, TimeoutError):
        detail = "it does not store a file: check SOUNDPOST_STORAGE_URL, its free space and its permissions"
        return Check(status="down", detail=detail)
    return Check(status="ok", detail="a small file was written, read and removed")


async def check_queue(database: Database) -> Check:
    """Whether submits are held."""

    async def check() -> Check:
        async with database.reads() as session:
            hold = await current_hold(session)
        if hold is None:
            return Check(status="ok", detail="submits are not held")
        # Anybody may read this: the upstream's own message stays out of it.
        since = hold.since.isoformat(timespec="seconds")
        return Check(status="degraded", detail=f"submits are held since {since}: {EXPLANATIONS[hold.reason]}")

    return await _reached(check)


async def check_overdue(database: Database) -> Check:
    """Whether due rows wait for longer than a minute."""

    async def check() -> Check:
        async with database.reads() as session:
            late = await database.now(session) - OVERDUE_AFTER
            held = await current_hold(session)
            statuses = [status for status in TaskStatus if not (held and status is TaskStatus.queued)]
            counts = {
                "tasks": await count_overdue(session, Task, late, Task.status.in_(statuses)),
                "clips": await count_overdue(session, Clip, late),
                "deliveries": await count_overdue_deliveries(session, late),
                "periodic jobs": await count_overdue(session, PeriodicJob, late),
            }
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if not found:
            return Check(status="ok", detail="nothing is overdue")
        return Check(status="degraded", detail=f"overdue: {found}; does a worker run?")

    return await _reached(check)


async def check_endpoints(database: Database) -> Check:
    """Which webhook endpoints failures disabled: their owners are told, and nothing is degraded."""

    async def check() -> Check:
        async with database.reads() as session:
            disabled = await disabled_after_failures(session, SHOWN_ENDPOINTS + 1)
        if not disabled:
            return Check(status="ok", detail="no endpoint is disabled because it failed")
        shown = ", ".join(disabled[:SHOWN_ENDPOINTS]) + (", …" if len(disabled) > SHOWN_ENDPOINTS else "")
        return Check(status="ok", detail=f"endpoints that are disabled because they failed: {shown}")

    return await _reached(check)


DATABASE_CHECKS: Mapping[str, Callable[[Database], Awaitable[Check]]] = {
    "queue": check_queue,
    "overdue": check_overdue,
    "webhooks": check_endpoints,
}


async def check_upstream(settings: Settings, gateway: UpstreamGateway) -> Check:
    """Whether the upstream accepts our key and the account has credits. Holds no submits: it is an operator's check."""
    if settings.upstream_api_key is None:
        detail = "SOUNDPOST_UPSTREAM_API_KEY is not set, so nothing can be ordered: set it to the upstream's key"
        return Check(status="down", detail=detail)
    result = await gateway.call(lambda upstream: upstream.credits(), full_share, may_hold=False)
    if result is None:
        return Check(status="degraded", detail="no request was free within its rate; check again in some seconds")
    if result.hold_reason is not None:
        return Check(status="degraded", detail=EXPLANATIONS[result.hold_reason])
    if result.value is None:
        message = f" ({result.message})" if result.message else ""
        return Check(status="degraded", detail=f"its answer is not usable: check SOUNDPOST_UPSTREAM_URL{message}")
    if result.value <= 0:
        return Check(status="degraded", detail="the key works, but the account has no credits: buy some")
    return Check(status="ok", detail=f"the key works; {result.value} credits are left")


async def check_public_url(settings: Settings, keyring: Keyring) -> Check:
    """Whether SOUNDPOST_PUBLIC_URL leads to a service with our keys, proven by a challenge."""
    if settings.public_url is None:
        return Check(status="ok", detail="not set: no callback can come, and polls do the work")
    challenge = secrets.token_hex(16)
    timeout = PUBLIC_URL_TIMEOUT.total_seconds()
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=timeout) as http:
            response = await http.get(f"{settings.public_url}{CALLBACKS_PATH}{challenge}")
    except httpx.HTTPError as error:
        name = type(error).__name__
        detail = f"SOUNDPOST_PUBLIC_URL cannot be reached from here ({name}): does `soundpost serve` run?"
        return Check(status="degraded", detail=detail)
    if response.is_success and response.text == keyring.prove_reach(challenge):
        return Check(status="ok", detail="it reaches this service")
    found = f"another server (HTTP {response.status_code})"
    return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL reaches {found}: it must pass {CALLBACKS_PATH} on")


async def _reached(check: Callable[[], Awaitable[Check]], *, with_reason: bool = False) -> Check:
    try:
        return await check()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        said = reason(error) if with_reason else type(error).__name__
        return Check(status="down", detail=f"it does not answer ({said}): check SOUNDPOST_DATABASE_URL")
