"""The shapes of webhook endpoints, their deliveries, and the webhooks about endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.enums import DeliveryStatus, DisabledBy, WebhookType
from app.models import Delivery, WebhookEndpoint
from app.web import Moment, StrictModel, Text
from app.web.fields import EXAMPLE_DELIVERY_ID, EXAMPLE_ENDPOINT_ID, EXAMPLE_EVENT_ID, EXAMPLE_TASK_ID, canonical_id
from app.web.pagination import Cursor, Limit, NextCursor
from app.webhooks.fields import EXAMPLE_URL, Description, EndpointRate, EventTypes, Headers, Url

EndpointWebhookType = Literal[WebhookType.webhook_test, WebhookType.endpoint_disabled]


EndpointId = Annotated[
    str, Path(description="The `id` of one of your webhook endpoints.", examples=[EXAMPLE_ENDPOINT_ID])
]
DeliveryId = Annotated[str, Path(description="The `id` of one of your deliveries.", examples=[EXAMPLE_DELIVERY_ID])]


class DeliveryFilters(BaseModel):
    """Which deliveries to list, and from where."""

    status: DeliveryStatus | SkipJsonSchema[None] = Field(
        default=None, description="Only deliveries with this status.", examples=["given_up"]
    )
    endpoint_id: Text | SkipJsonSchema[None] = Field(
        default=None, description="Only deliveries to the endpoint with this id.", examples=[EXAMPLE_ENDPOINT_ID]
    )
    task_id: Annotated[Text, AfterValidator(canonical_id)] | SkipJsonSchema[None] = Field(
        default=None, description="Only deliveries about the task with this id.", examples=[EXAMPLE_TASK_ID]
    )
    limit: Limit = 50
    cursor: Cursor = None


class EndpointCreate(StrictModel):
    """A webhook endpoint to create."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.com/hooks", "event_types": ["task.succeeded"]}]}
    )

    url: Url
    event_types: EventTypes = None
    description: Description = None
    headers: Headers = None
    rate: EndpointRate = None
    disabled: bool = Field(default=False, description="Whether to create the endpoint disabled.", examples=[False])


class EndpointUpdate(StrictModel):
    """The fields of a webhook endpoint to change; absent fields stay as they are."""

    url: Url = Field(default_factory=str)
    event_types: EventTypes = None
    description: Description = None
    headers: Headers = None
    rate: EndpointRate = None
    disabled: bool = Field(
        default_factory=bool, description="True disables the endpoint, false enables it again.", examples=[True]
    )


class EndpointRead(BaseModel):
    """A webhook endpoint."""

    id: str = Field(description="The endpoint's id: a UUIDv7 in 32 hexadecimal digits.", examples=[EXAMPLE_ENDPOINT_ID])
    url: str = Field(description="The URL that webhooks are sent to.", examples=[EXAMPLE_URL])
    event_types: list[WebhookType] | None = Field(
        description="The event types that are sent; null for all.", examples=[["task.succeeded", "task.failed"]]
    )
    description: str | None = Field(
        description="Your own note about the endpoint; null for none.", examples=["Staging"]
    )
    headers: list[str] = Field(
        description="The names of the headers that are sent with each attempt; their values are never shown.",
        examples=[["Authorization"]],
    )
    rate: str | None = Field(
        description="At most so many attempts in any window of so many seconds, as `requests/seconds`; null for no"
        " such limit.",
        examples=["10/1"],
    )
    disabled: bool = Field(description="Whether the endpoint gets no webhooks at present.", examples=[False])
    disabled_at: datetime | None = Field(
        description="When the endpoint was disabled; null while it is enabled.", examples=["2026-01-31T08:00:00Z"]
    )
    disabled_by: DisabledBy | None = Field(
        description="Why the endpoint was disabled; null while it is enabled.", examples=["failing"]
    )
    failing_since: datetime | None = Field(
        description="Since when every attempt has failed; null if the last one succeeded, or none was made. An"
        " endpoint that fails for 5 days is disabled.",
        examples=["2026-01-26T08:00:00Z"],
    )
    created_at: datetime = Field(description="When the endpoint was created.", examples=["2026-01-20T08:00:00Z"])


class EndpointPage(BaseModel):
    """One page of webhook endpoints, oldest first."""

    items: list[EndpointRead] = Field(description="The endpoints of this page, oldest first.")
    next_cursor: NextCursor


class Secret(BaseModel):
    """A signing secret as Standard Webhooks writes it."""

    secret: str = Field(
        description="The secret: `whsec_` and 32 bytes in base64. Verify `webhook-signature` with it.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
    )


class Recovery(StrictModel):
    """The time range whose undelivered deliveries are due again."""

    since: Moment = Field(
        description="Only deliveries created at or after this time (RFC 3339).", examples=["2026-01-31T00:00:00Z"]
    )
    until: Moment | None = Field(
        default=None,
        description="Only deliveries created at or before this time (RFC 3339); null means now.",
        examples=["2026-01-31T12:00:00Z"],
    )


class Recovered(BaseModel):
    """The result of a recovery."""

    deliveries: int = Field(description="How many deliveries are due again, counted up to 10000.", examples=[17])


class DeliveryRead(BaseModel):
    """One event on its way to one URL, until it is delivered or given up."""

    id: str = Field(description="The delivery's id: a UUIDv7 in 32 hexadecimal digits.", examples=[EXAMPLE_DELIVERY_ID])
    event_id: str = Field(
        description="The event's id, sent as `webhook-id` with every attempt.", examples=[EXAMPLE_EVENT_ID]
    )
    event_type: WebhookType = Field(description="The type of the event.", examples=["task.succeeded"])
    task_id: str | None = Field(
        description="The id of the task that it happened to; null for events about an endpoint.",
        examples=[EXAMPLE_TASK_ID],
    )
    endpoint_id: str | None = Field(
        description="The id of the endpoint that it goes to; null if it goes to the `webhook_url` of its task.",
        examples=[EXAMPLE_ENDPOINT_ID],
    )
    url: str = Field(description="The URL that it is sent to.", examples=[EXAMPLE_URL])
    status: DeliveryStatus = Field(description="Where the delivery stands.", examples=["pending"])
    attempts: int = Field(description="How many attempts were made.", examples=[2], json_schema_extra={"minimum": 0})
    next_attempt_at: datetime | None = Field(
        description="When the next attempt is due; null if none will follow.", examples=["2026-01-31T08:05:42Z"]
    )
    delivered_at: datetime | None = Field(
        description="When the receiver answered with a 2xx status; null until then.",
        examples=["2026-01-31T08:05:43Z"],
    )
    created_at: datetime = Field(description="When the event happened.", examples=["2026-01-31T08:00:42Z"])


class DeliveryPage(BaseModel):
    """One page of deliveries, newest first."""

    items: list[DeliveryRead] = Field(description="The deliveries of this page, newest first.")
    next_cursor: NextCursor


class AttemptRead(BaseModel):
    """One HTTP request of a delivery, and its result: a status code or an error."""

    model_config = ConfigDict(from_attributes=True)

    attempted_at: datetime = Field(description="When the request was started.", examples=["2026-01-31T08:00:42Z"])
    duration_ms: int = Field(
        description="How long the request took, in milliseconds.", examples=[184], json_schema_extra={"minimum": 0}
    )
    status_code: int | None = Field(
        description="The HTTP status code of the response; null if there was none.", examples=[503]
    )
    error: str | None = Field(description="Why there was no response; null if there was one.", examples=["timeout"])
    response: str | None = Field(
        description="The first 1024 bytes of the response body as text; null if there was none.",
        examples=["Service Unavailable"],
    )


class AttemptPage(BaseModel):
    """One page of a delivery's attempts, oldest first."""

    items: list[AttemptRead] = Field(description="The attempts of this page, oldest first.")
    next_cursor: NextCursor


class EndpointData(BaseModel):
    """The subject of a webhook about an endpoint."""

    endpoint: EndpointRead = Field(description="The endpoint that the event is about, as it was then.")


class EndpointWebhook(BaseModel):
    """The body of a webhook about an endpoint."""

    type: EndpointWebhookType = Field(
        description="`webhook.test` for a test of this endpoint, `endpoint.disabled` if another endpoint was disabled.",
        examples=["endpoint.disabled"],
    )
    timestamp: datetime = Field(description="When it happened.", examples=["2026-01-31T08:00:00Z"])
    data: EndpointData = Field(description="The endpoint that it happened to.")


def read_endpoint(endpoint: WebhookEndpoint) -> EndpointRead:
    """An endpoint in its owner's shape."""
    apart = ("headers", "disabled")
    return EndpointRead(
        **{name: getattr(endpoint, name) for name in EndpointRead.model_fields if name not in apart},
        headers=endpoint.header_names or [],
        disabled=endpoint.disabled_at is not None,
    )


def read_delivery(delivery: Delivery) -> DeliveryRead:
    """A delivery in its caller's shape."""
    apart = ("attempts", "next_attempt_at")
    return DeliveryRead(
        **{name: getattr(delivery, name) for name in DeliveryRead.model_fields if name not in apart},
        attempts=delivery.attempts_made,
        next_attempt_at=delivery.due_at,
    )
