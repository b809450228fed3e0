"""The webhooks that receivers get, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header

from app.enums import WebhookType
from app.web.fields import EXAMPLE_EVENT_ID
from app.webhooks.schemas import EndpointWebhook

WebhookId = Annotated[
    str, Header(description="The event's id, the same on every attempt.", examples=[EXAMPLE_EVENT_ID])
]
WebhookTimestamp = Annotated[
    str, Header(description="When this attempt was made, in Unix seconds.", examples=["1769846442"])
]
WebhookSignature = Annotated[
    str,
    Header(
        description="The signature after Standard Webhooks, `v1,<base64>`; for 24 hours after a rotation two of them,"
        " separated by a space.",
        examples=["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
    ),
]

SUMMARIES: Mapping[WebhookType, str] = {
    WebhookType.webhook_test: "A test that you requested",
    WebhookType.endpoint_disabled: "Another endpoint of yours was disabled",
}


async def receive_endpoint_webhook(
    webhook: EndpointWebhook,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Answer with a 2xx status within 15 seconds; otherwise the webhook is sent again later."""


def documented_routes(
    receive: Callable[..., Any], summaries: Mapping[WebhookType, str], path: str = "{kind}", verb: str = "receive"
) -> APIRouter:
    """One route for each event type that receivers get in this shape; it is documented, not served."""
    router = APIRouter(tags=["webhooks"])
    for kind, summary in summaries.items():
        name = "".join(word.capitalize() for word in kind.replace(".", "_").split("_"))
        router.add_api_route(
            path.format(kind=kind.value),
            receive,
            methods=["POST"],
            status_code=204,
            response_description="The webhook was received, and is not sent again.",
            responses={"default": {"description": "The webhook is sent again later; 410 disables the endpoint."}},
            name=kind.value,
            summary=summary,
            operation_id=f"{verb}{name}",
        )
    return router
