"""Where the upstream calls: no key, but an address that only it was told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import structlog
from fastapi import Path, Request
from fastapi.responses import PlainTextResponse

from app.callbacks.service import receive
from app.config import CALLBACKS_PATH, Settings
from app.database.base import ID_LENGTH
from app.errors import NotAuthenticated, NotFound
from app.keyring import Keyring
from app.observability.metrics import Metrics
from app.tasks.lifecycle import TaskLifecycle
from app.upstream.suno.reports import read_callback
from app.upstream.suno.signature import callback_signature_matches
from app.web.problems import problem_responses
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(tags=["callbacks"])
log = structlog.get_logger()
KeyringDep = Annotated[Keyring, provided(Keyring)]


@router.post(
    CALLBACKS_PATH + "{task_id}/{token}",
    operation_id="receiveCallback",
    responses=problem_responses(NotAuthenticated),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": {}}}}},
)
async def receive_callback(
    request: Request,
    database: DatabaseDep,
    lifecycle: Annotated[TaskLifecycle, provided(TaskLifecycle)],
    keyring: KeyringDep,
    settings: Annotated[Settings, provided(Settings)],
    metrics: Annotated[Metrics, provided(Metrics)],
    task_id: str,
    token: str,
) -> dict[str, str]:
    """Take in a message from the upstream. It and its effect are stored before this returns."""
    if len(task_id) != ID_LENGTH or not keyring.is_callback_token(task_id, token):
        metrics.callbacks.labels(outcome="forged").inc()
        raise NotFound
    body = await request.body()
    key = settings.callback_hmac_key
    if key is not None and not _is_signed(request, body, key.get_secret_value()):
        metrics.callbacks.labels(outcome="unsigned").inc()
        raise NotAuthenticated(detail="The signature that this service was told to expect is missing or wrong.")
    upstream_key = settings.upstream_api_key
    secrets = (token, upstream_key.get_secret_value()) if upstream_key else (token,)
    outcome = await receive(database, lifecycle, task_id, dict(request.headers), body, *secrets)
    metrics.callbacks.labels(outcome=outcome.value).inc()
    log.info("callback", task_id=task_id, outcome=outcome.value, bytes=len(body))
    return {"status": "received"}


@router.get(CALLBACKS_PATH + "{challenge}", include_in_schema=False)
async def prove_reach(
    keyring: KeyringDep, challenge: Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
) -> PlainTextResponse:
    """Prove that the public URL leads here, below the one path that the upstream needs."""
    return PlainTextResponse(keyring.prove_reach(challenge))


def _is_signed(request: Request, body: bytes, key: str) -> bool:
    report = read_callback(body)
    upstream_task_id = report.upstream_task_id if report else None
    now = datetime.now(UTC)
    return upstream_task_id is not None and callback_signature_matches(request.headers, upstream_task_id, key, now)
