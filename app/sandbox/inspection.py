"""What the upstream does not have: its journal, its tasks as they truly are, and its controls."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from app.sandbox.account import Outage
from app.sandbox.api_routes import SandboxDep, status_of
from app.sandbox.faults import InvalidFault
from app.sandbox.journal import caller_task_id
from app.sandbox.state import Sandbox, Task, now
from app.sandbox.timeline import failure_for

router = APIRouter()


class ControlUpdate(BaseModel):
    """What may be changed while the sandbox runs; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    api_key: str | None = None
    delay: float | None = Field(default=None, ge=0)
    rate: int | None = Field(default=None, ge=0)
    period: float | None = Field(default=None, gt=0)
    fault: str | None = None
    """The fault of every task without a tag; empty for none."""
    credits: float | None = Field(default=None, ge=0)
    key_works: bool | None = None
    maintenance: bool | None = None


@router.get("/journal")
def journal(
    sandbox: SandboxDep, kind: str | None = None, path: str | None = None, task_id: str | None = None
) -> Response:
    """Every request that arrived and every callback attempt, oldest first."""
    return _as_json(sandbox.journal.find(kind=kind, path=path, task_id=task_id))


@router.get("/tasks")
def tasks(sandbox: SandboxDep) -> Response:
    """Every task that was created, and charged, whatever the caller was told."""
    return _as_json(_record_data(task) for task in list(sandbox.tasks.values()))


@router.get("/control")
async def control(sandbox: SandboxDep) -> dict[str, Any]:
    """How the sandbox is set at the moment."""
    options, account, time = sandbox.options, sandbox.account, now()
    return {
        "delay": options.delay,
        "rate": options.rate,
        "period": options.period,
        "fault": options.fault,
        "credits": account.balance(time),
        "key_works": not account.has_outage(time, "key"),
        "maintenance": account.has_outage(time, "maintenance"),
    }


@router.post("/control")
async def update_control(sandbox: SandboxDep, changes: ControlUpdate) -> dict[str, Any]:
    """Change it."""
    given = changes.model_dump(exclude_none=True, include={"api_key", "delay", "rate", "period", "fault"})
    try:
        sandbox.options = replace(sandbox.options, **given)
    except InvalidFault as error:
        raise HTTPException(422, str(error)) from None
    if changes.credits is not None:
        sandbox.account.set_credits(changes.credits)
    if changes.key_works is not None:
        _set_outage(sandbox, "key", works=changes.key_works)
    if changes.maintenance is not None:
        _set_outage(sandbox, "maintenance", works=not changes.maintenance)
    return await control(sandbox)


def _set_outage(sandbox: Sandbox, what: Outage, *, works: bool) -> None:
    if works:
        sandbox.account.end_outage(what)
    else:
        sandbox.account.stop(what, now(), None)


def _record_data(task: Task) -> dict[str, Any]:
    failure = failure_for(task.faults)
    return {
        "task_id": task.id,
        "callback_url": task.order.callback_url,
        "caller_task_id": caller_task_id(task.order.callback_url),
        "prompt": task.order.prompt,
        "model": task.order.model,
        "faults": list(task.faults),
        "created_at": task.created_at,
        "created_monotonic": task.created_monotonic,
        "status": status_of(task),
        "failure_code": failure.code if failure else None,
        "clips": [clip.id for clip in task.clips],
        "callbacks": [vars(attempt) for attempt in list(task.callbacks)],
        "delivered": [attempt.type for attempt in list(task.callbacks) if attempt.delivered],
    }


def _as_json(records: Iterable[dict[str, Any]]) -> Response:
    content = json.dumps(list(records), default=datetime.isoformat)
    return Response(content, media_type="application/json")
