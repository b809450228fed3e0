"""The shapes of a task's history: its events, and the callbacks that the upstream sent for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from app.enums import CallbackOutcome, EventType, TaskStatus
from app.models import Event
from app.web.fields import EXAMPLE_EVENT_ID, EXAMPLE_TASK_ID
from app.web.pagination import NextCursor


class History(NamedTuple):
    """The state of a task, and its events after a version, oldest first."""

    status: TaskStatus
    version: int
    events: Sequence[Event]


class EventRead(BaseModel):
    """A numbered fact about a task."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="The event's id: a UUIDv7 in 32 hexadecimal digits.", examples=[EXAMPLE_EVENT_ID])
    type: EventType = Field(description="The type of the event.", examples=["task.succeeded"])
    task_id: str = Field(description="The id of the task that it happened to.", examples=[EXAMPLE_TASK_ID])
    version: int = Field(
        description="The version that the event gave the task, from 1; events of a task are in its order.",
        examples=[4],
        json_schema_extra={"minimum": 1},
    )
    created_at: datetime = Field(description="When it happened.", examples=["2026-01-31T08:00:42Z"])
    data: dict[str, Any] = Field(
        description="The task's fields that the event changed, with their new values.",
        examples=[{"status": "succeeded", "charge": "charged", "resolved_by": "callback"}],
    )


class EventPage(BaseModel):
    """One page of a task's events, oldest first."""

    items: list[EventRead] = Field(description="The events of this page, oldest first.")
    next_cursor: NextCursor


class CallbackRead(BaseModel):
    """A callback as the upstream sent it, with secrets redacted; one of the two bodies is null."""

    id: str = Field(
        description="The callback's id: a UUIDv7 in 32 hexadecimal digits.",
        examples=["019a6c1f1b0e7a5c9d3e5f7a9b1c3d5e"],
    )
    received_at: datetime = Field(description="When it was received.", examples=["2026-01-31T08:00:42Z"])
    headers: dict[str, str] = Field(
        description="The request headers by lower-case name; `***` replaces what is secret.",
        examples=[{"content-type": "application/json", "content-length": "118"}],
    )
    body: str | None = Field(
        description="The body as text; null where it is not UTF-8.",
        examples=['{"code":200,"data":{"callbackType":"complete","task_id":"2fac9f72a1c44f8e","data":[]}}'],
    )
    body_base64: str | None = Field(
        description="The body in base64 (RFC 4648 §4) where it is not UTF-8; else null.", examples=["H4sIAAAAAAAA/w=="]
    )
    outcome: CallbackOutcome = Field(description="What it did to the task.", examples=["applied"])


class CallbackPage(BaseModel):
    """One page of a task's callbacks, oldest first."""

    items: list[CallbackRead] = Field(description="The callbacks of this page, oldest first.")
    next_cursor: NextCursor
