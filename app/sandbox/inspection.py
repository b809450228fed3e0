"""Routes that the upstream does not have: the journal, the true state of each task, and the controls."""

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

ROUTES_HELP = """\
Routes that the upstream does not have. They require no key and show callback
URLs in full.

  GET /journal   All requests and callback attempts with their times, oldest
                 first. Filters: kind (request or callback), path, task_id.
  GET /tasks     All tasks with their true status, faults and callback attempts.
  GET /control   The current settings.
  POST /control  Changes settings, as in {"delay": 1, "fault": "code-500:0.1"}:
                 api_key, delay (seconds from submit to complete), rate (submits
                 and polls in any period), period (seconds), fault (as in
                 --fault, empty for none), credits, key_works, maintenance."""


class ControlUpdate(BaseModel):
    """What can be changed while the sandbox runs. A field that is not given stays as it is."""

    model_config = ConfigDict(extra="forbid")

    api_key: str | None = None
    delay: float | None = Field(default=None, ge=0)
    rate: int | None = Field(default=None, ge=0)
    period: float | None = Field(default=None, gt=0)
    fault: str | None = None
    """The faults of every task without a tag, as in `--fault`; empty for none."""
    credits: float | None = Field(default=None, ge=0)
    key_works: bool | None = None
    maintenance: bool | None = None


@router.get("/journal")
def journal(
    sandbox: SandboxDep, kind: str | None = None, path: str | None = None, task_id: str | None = None
) -> Response:
    """All requests and callback attempts, oldest first."""
    return _as_json(sandbox.journal.find(kind=kind, path=path, task_id=task_id))


@router.get("/tasks")
def tasks(sandbox: SandboxDep) -> Response:
    """All tasks that were created and charged, whatever the response to the submit was."""
    return _as_json(_record_data(task) for task in list(sandbox.tasks.values()))


@router.get("/control")
async def control(sandbox: SandboxDep) -> dict[str, Any]:
    """The current settings."""
    options, account, current = sandbox.options, sandbox.account, now()
    return {
        "delay": options.delay,
        "rate": options.rate,
        "period": options.period,
        "fault": options.fault,
        "credits": account.balance(current),
        "key_works": not account.has_outage(current, "key"),
        "maintenance": account.has_outage(current, "maintenance"),
    }


@router.post("/control")
async def update_control(sandbox: SandboxDep, changes: ControlUpdate) -> dict[str, Any]:
    """Change settings and return all of them."""
    options = changes.model_dump(exclude_none=True, include={"api_key", "delay", "rate", "period", "fault"})
    try:
        sandbox.options = replace(sandbox.options, **options)
    except InvalidFault as error:
        raise HTTPException(422, str(error)) from None
    if changes.credits is not None:
        sandbox.account.set_credits(changes.credits)
    if changes.key_works is not None:
        _set_outage(sandbox, "key", is_on=not changes.key_works)
    if changes.maintenance is not None:
        _set_outage(sandbox, "maintenance", is_on=changes.maintenance)
    return await control(sandbox)


def _set_outage(sandbox: Sandbox, outage: Outage, *, is_on: bool) -> None:
    if is_on:
        sandbox.account.start_outage(outage, now(), None)
    else:
        sandbox.account.end_outage(outage)


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
