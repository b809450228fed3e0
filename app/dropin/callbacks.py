"""The vendor's callbacks to a client's `callBackUrl`, sent as our own deliveries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from app.database.base import new_id
from app.database.engine import Session
from app.dropin.schemas import callback
from app.enums import EventType
from app.models import Event, Task
from app.signed_urls import SignedUrls
from app.tasks.events import WEBHOOK_TYPES
from app.tasks.schemas import read_task
from app.webhooks.outbox import OutboundEvent, enqueue_to_url_on_commit

# The vendor's stage `text` has no counterpart: our clips begin with their audio.
STAGES: Mapping[EventType, str] = {
    EventType.task_progressed: "first",
    EventType.task_succeeded: "complete",
    EventType.task_failed: "error",
    EventType.task_canceled: "error",
}


def publish_to_callback_url(
    session: Session, task: Task, event: Event, signed_urls: SignedUrls, due_at: datetime
) -> None:
    """Enqueue the vendor's callback about an event, if the vendor makes one and the client asked for callbacks."""
    stage = STAGES.get(event.type)
    if stage is None or task.callback_url is None:
        return
    body = json.dumps(callback(task, read_task(task, {}, signed_urls), stage)).encode()
    # A new id: the body differs from that of our own webhook about the event, which has the event's id.
    outbound = OutboundEvent(
        new_id(), WEBHOOK_TYPES[event.type.value], task.api_key_id, task.id, body, event.created_at, due_at
    )
    enqueue_to_url_on_commit(session, outbound, task.callback_url)
