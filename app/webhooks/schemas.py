"""The shapes in which callers set up endpoints and see their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.enums import DeliveryStatus, DisabledBy, WebhookType
from app.models import Delivery, WebhookEndpoint
from app.web import Moment, StrictModel, Text
from app.web.pagination import Cursor, Limit

EndpointWebhookType = Literal[WebhookType.webhook_test, WebhookType.endpoint_disabled]


Url = Annotated[str, StringConstraints(min_length=1, max_length=2048), Field(json_schema_extra={"format": "uri"})]
Description = Annotated[Text, StringConstraints(max_length=500)]
EventTypes = Annotated[
    list[Annotated[WebhookType, Field(strict=False)]],
    Field(min_length=1, max_length=len(WebhookType), description="What to tell; null means everything."),
]


class DeliveryFilters(BaseModel):
    """Which deliveries to list, and from where."""

    status: DeliveryStatus | None = None
    endpoint_id: Text | None = None
    task_id: Text | None = None
    limit: Limit = 50
    cursor: Cursor = None


class EndpointCreate(StrictModel):
    """Where to tell you of your tasks."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.com/hooks", "event_types": ["task.succeeded"]}]}
    )

    url: Url
    event_types: EventTypes | None = None
    description: Description | None = None
    disabled: bool = False


class EndpointUpdate(StrictModel):
    """What to change of an endpoint; what is left out stays."""

    url: Url = Field(default_factory=str)
    event_types: EventTypes | None = None
    description: Description | None = None
    disabled: bool = Field(default_factory=bool)


class EndpointRead(BaseModel):
    """An endpoint as its owner sees it."""

    id: str
    url: str
    event_types: list[WebhookType] | None
    description: str | None
    disabled: bool
    disabled_at: datetime | None
    disabled_by: DisabledBy | None
    failing_since: datetime | None
    created_at: datetime


class EndpointPage(BaseModel):
    """Some endpoints, oldest first, and where the next ones begin."""

    items: list[EndpointRead]
    next_cursor: str | None


class Secret(BaseModel):
    """What webhooks are signed with, as receivers' libraries take it."""

    secret: str


class Recovery(StrictModel):
    """Which time to recover; until now, unless told."""

    since: Moment
    until: Moment | None = None


class Recovered(BaseModel):
    """How many deliveries are due again."""

    deliveries: int


class DeliveryRead(BaseModel):
    """One event for one endpoint; `endpoint_id` is null where it goes to a task's own `webhook_url`."""

    id: str
    event_id: str
    event_type: WebhookType
    task_id: str | None
    endpoint_id: str | None
    url: str
    status: DeliveryStatus
    attempts: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    created_at: datetime


class DeliveryPage(BaseModel):
    """Some deliveries, newest first, and where the next ones begin."""

    items: list[DeliveryRead]
    next_cursor: str | None


class AttemptRead(BaseModel):
    """One try: the receiver's status and the first 1 KiB of its answer, or else why there is none."""

    model_config = ConfigDict(from_attributes=True)

    attempted_at: datetime
    duration_ms: int
    status_code: int | None
    error: str | None
    response: str | None


class AttemptPage(BaseModel):
    """A delivery's attempts, oldest first, and where the next ones begin."""

    items: list[AttemptRead]
    next_cursor: str | None


class EndpointData(BaseModel):
    """The endpoint that a webhook is about."""

    endpoint: EndpointRead


class EndpointWebhook(BaseModel):
    """The body of a webhook that is about an endpoint."""

    type: EndpointWebhookType
    timestamp: datetime
    data: EndpointData


def read_endpoint(endpoint: WebhookEndpoint) -> EndpointRead:
    """An endpoint in its owner's shape."""
    same = {name: getattr(endpoint, name) for name in EndpointRead.model_fields if name != "disabled"}
    return EndpointRead(**same, disabled=endpoint.disabled_at is not None)


def read_delivery(delivery: Delivery) -> DeliveryRead:
    """A delivery in its caller's shape."""
    apart = ("attempts", "next_attempt_at")
    return DeliveryRead(
        **{name: getattr(delivery, name) for name in DeliveryRead.model_fields if name not in apart},
        attempts=delivery.attempts_made,
        next_attempt_at=delivery.due_at,
    )
