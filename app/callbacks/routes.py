"""Where the upstream calls: without an API key, at a URL that only it was told."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request
from fastapi.responses import PlainTextResponse

from app.callbacks.service import CallbackService
from app.config import CALLBACKS_PATH
from app.errors import NotAuthenticated
from app.keyring import Keyring
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router

router = Router(tags=["callbacks"])


@router.post(
    CALLBACKS_PATH + "{task_id}/{token}",
    operation_id="receiveCallback",
    responses=problem_responses(NotAuthenticated),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": {}}}}},
)
async def receive_callback(
    request: Request, callbacks: Annotated[CallbackService, provided(CallbackService)], task_id: str, token: str
) -> dict[str, str]:
    """Receive a callback from the upstream. It and its effect are stored before the response."""
    callbacks.check_token(task_id, token)
    await callbacks.receive(task_id, token, dict(request.headers), await request.body())
    return {"status": "received"}


@router.get(CALLBACKS_PATH + "{challenge}", include_in_schema=False)
async def prove_reach(
    keyring: Annotated[Keyring, provided(Keyring)], challenge: Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
) -> PlainTextResponse:
    """Prove that the public URL leads here, below the one path that the upstream needs."""
    return PlainTextResponse(keyring.prove_reach(challenge))
