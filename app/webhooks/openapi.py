"""What receivers are sent, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header

from app.enums import WebhookType
from app.webhooks.schemas import EndpointWebhook

WebhookId = Annotated[str, Header(description="The event's id: the same on every attempt.")]
WebhookTimestamp = Annotated[str, Header(description="When this attempt was made, in Unix seconds.")]
WebhookSignature = Annotated[
    str, Header(description="`v1,<base64>` after Standard Webhooks; while secrets overlap several, by spaces.")
]

SUMMARIES: Mapping[WebhookType, str] = {
    WebhookType.webhook_test: "You asked for a test.",
    WebhookType.endpoint_disabled: "Another endpoint of yours failed for 5 days, or answered 410.",
}


async def receive_endpoint_webhook(
    webhook: EndpointWebhook,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Answer 2xx within 15 seconds; anything else is tried again later."""


def described(
    receive: Callable[..., Any], summaries: Mapping[WebhookType, str], path: str = "{kind}", verb: str = "hear"
) -> APIRouter:
    """One route, which nobody serves, for each event that is received like this."""
    router = APIRouter(tags=["webhooks"])
    for kind, summary in summaries.items():
        name = "".join(word.capitalize() for word in kind.replace(".", "_").split("_"))
        router.add_api_route(
            path.format(kind=kind.value),
            receive,
            methods=["POST"],
            status_code=204,
            responses={"default": {"description": "Not taken in: it comes again later; 410 ends all deliveries."}},
            name=kind.value,
            summary=summary,
            operation_id=f"{verb}{name}",
        )
    return router
