"""Whether the service lives, whether it can work, and what it counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.database.engine import Database
from app.enums import TaskStatus
from app.errors import StorageUnavailable
from app.models import Clip, PeriodicJob, Task
from app.observability.metrics import Metrics
from app.storage.store import Storage
from app.upstream.hold import EXPLANATIONS, current_hold
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router
from app.webhooks.repository import count_overdue, disabled_after_failures

router = Router(tags=["health"])
OVERDUE_AFTER = timedelta(seconds=60)
SHOWN_ENDPOINTS = 5
STORAGE_TIMEOUT = 5.0
State = Literal["ok", "degraded", "down"]


class Check(BaseModel):
    """How one thing that we need is, and what to do about it."""

    status: State
    detail: str | None = None


class Readiness(BaseModel):
    """The worst of the checks, and each of them."""

    status: State
    checks: dict[str, Check]


@router.get("/livez", operation_id="isAlive")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="isReady", responses={503: {"model": Readiness}})
async def readyz(
    response: Response, database: DatabaseDep, storage: Annotated[Storage, provided(Storage)]
) -> Readiness:
    """503 only when nothing can be taken in; what merely waits is `degraded`, since callbacks must still come."""
    checks = {
        "database": await _checked(_check_database(database)),
        "storage": await _check_storage(storage),
    }
    if checks["database"].status == "ok":
        checks["upstream"] = await _checked(_check_hold(database))
        checks["queue"] = await _checked(_check_overdue(database))
        checks["webhooks"] = await _checked(_check_endpoints(database))
    status = worst(checks)
    response.status_code = 503 if status == "down" else 200
    response.headers["Cache-Control"] = "no-store"
    return Readiness(status=status, checks=checks)


@router.get("/metrics", operation_id="getMetrics", include_in_schema=False)
async def get_metrics(metrics: Annotated[Metrics, provided(Metrics)]) -> Response:
    """What this process counted, in Prometheus' text form."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def worst(checks: Mapping[str, Check]) -> State:
    """A chain is as strong as its weakest link."""
    found = {check.status for check in checks.values()}
    return "down" if "down" in found else "degraded" if "degraded" in found else "ok"


async def _checked(check: Awaitable[Check]) -> Check:
    try:
        return await check
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return Check(status="down", detail=f"the database does not answer ({type(error).__name__})")


async def _check_database(database: Database) -> Check:
    if await database.is_migrated():
        return Check(status="ok")
    return Check(status="down", detail="the schema is not this release's: run `soundpost migrate`")


async def _check_storage(storage: Storage) -> Check:
    try:
        async with asyncio.timeout(STORAGE_TIMEOUT):
            await storage.probe()
    except (StorageUnavailable, TimeoutError):
        return Check(status="down", detail="the storage does not keep a file: check SOUNDPOST_STORAGE_URL and its room")
    return Check(status="ok")


async def _check_hold(database: Database) -> Check:
    async with database.reads() as session:
        hold = await current_hold(session)
    if hold is None:
        return Check(status="ok")
    since = hold.since.isoformat(timespec="seconds")
    return Check(status="degraded", detail=f"submits are held since {since}: {EXPLANATIONS[hold.reason]}")


async def _check_endpoints(database: Database) -> Check:
    """A receiver that fails is its owner's to mend: it is told, and degrades nothing."""
    async with database.reads() as session:
        disabled = await disabled_after_failures(session, SHOWN_ENDPOINTS + 1)
    if not disabled:
        return Check(status="ok")
    more = ", …" if len(disabled) > SHOWN_ENDPOINTS else ""
    shown = ", ".join(disabled[:SHOWN_ENDPOINTS]) + more
    return Check(status="ok", detail=f"endpoints that were disabled because they failed: {shown}")


async def _check_overdue(database: Database) -> Check:
    async with database.reads() as session:
        late = await database.now(session) - OVERDUE_AFTER
        held = await current_hold(session)
        statuses = [status for status in TaskStatus if not (held and status is TaskStatus.queued)]
        overdue = {
            "tasks": select(func.count()).where(Task.status.in_(statuses), Task.due_at < late),
            "clips": select(func.count()).where(Clip.due_at < late),
            "deliveries": count_overdue(late),
            "periodic jobs": select(func.count()).where(PeriodicJob.due_at < late),
        }
        counts = {name: await session.scalar(count) for name, count in overdue.items()}
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not found:
        return Check(status="ok")
    return Check(status="degraded", detail=f"overdue: {found}; does a worker run?")
