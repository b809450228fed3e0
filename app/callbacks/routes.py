"""The route that receives the upstream's callbacks; it takes no key, but a secret in its URL."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request
from fastapi.responses import PlainTextResponse

from app.callbacks.service import CallbackService
from app.config import CALLBACKS_PATH
from app.errors import NotAuthenticated
from app.keyring import Keyring
from app.web.fields import EXAMPLE_TASK_ID
from app.web.openapi import header_parameter
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router

router = Router(tags=["callbacks"])
# What the upstream sends is documented by itself, and read here with care; it is not validated by a schema.
UNREAD = {
    "parameters": [
        header_parameter(
            "X-Webhook-Timestamp",
            "When the callback was signed, in Unix seconds; required where the service has a key for signatures.",
            "1769846442",
        ),
        header_parameter(
            "X-Webhook-Signature",
            "The base64 HMAC-SHA256 of `<upstream task id>.<timestamp>`; required where the service has a key for it.",
            "WtzV65swf0LZzsInJvP0mLo1FSny6bKpqDqus37Q1RM=",
        ),
    ],
    "requestBody": {
        "description": "The upstream's report on its task, in any of its shapes; at most 1 MiB.",
        "content": {"application/json": {"schema": {}}},
    },
}
CalledTaskId = Annotated[
    str, Path(description="The `id` of the task that the callback is about.", examples=[EXAMPLE_TASK_ID])
]
Token = Annotated[
    str,
    Path(
        description="The secret in this task's callback URL: 32 characters of URL-safe base64.",
        examples=["kq3vB1fGZt8mW0yq5b7cN2xR4sT6uV9w"],
    ),
]


@router.post(
    CALLBACKS_PATH + "{task_id}/{token}",
    operation_id="receiveCallback",
    summary="Receive a callback",
    response_description="The callback and its effect are stored.",
    responses=problem_responses(NotAuthenticated),
    openapi_extra=UNREAD,
)
async def receive_callback(
    request: Request,
    callbacks: Annotated[CallbackService, provided(CallbackService)],
    task_id: CalledTaskId,
    token: Token,
) -> dict[str, str]:
    """
    Receive a callback from the upstream about one task.

    The callback and its effect on the task are stored before the response. A callback
    that cannot be read, or says nothing new, is stored too and also answered with 200.
    """
    callbacks.check_token(task_id, token)
    await callbacks.receive(task_id, token, dict(request.headers), await request.body())
    return {"status": "received"}


@router.get(CALLBACKS_PATH + "{challenge}", include_in_schema=False)
async def prove_reach(
    keyring: Annotated[Keyring, provided(Keyring)], challenge: Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
) -> PlainTextResponse:
    """Prove that the public URL leads here, below the one path that the upstream needs."""
    return PlainTextResponse(keyring.prove_reach(challenge))
