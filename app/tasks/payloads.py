"""What callers are told of their tasks, and in which bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from app.database.engine import Session
from app.enums import WebhookType
from app.models import Event, Task
from app.signed_urls import SignedUrls
from app.tasks.schemas import TaskRead, read_task
from app.tasks.transitions import EVENT_BY_STATUS, FINAL
from app.webhooks.openapi import WebhookId, WebhookSignature, WebhookTimestamp
from app.webhooks.outbox import OutboundEvent, enqueue_on_commit, enqueue_to_url_on_commit

W = WebhookType
TaskWebhookType = Literal[
    W.task_submitted, W.task_progressed, W.task_succeeded, W.task_failed, W.task_canceled, W.clip_archived
]

WEBHOOK_TYPES: Mapping[str, WebhookType] = {kind.value: kind for kind in WebhookType}
# A task's own webhook_url hears of its end.
FINAL_TYPES = frozenset(EVENT_BY_STATUS[status] for status in FINAL)

FINAL_SUMMARIES: Mapping[WebhookType, str] = {
    W.task_succeeded: "The sound is ready.",
    W.task_failed: "There will be no sound.",
    W.task_canceled: "The task was stopped.",
}
SUMMARIES: Mapping[WebhookType, str] = {
    W.task_submitted: "The upstream has the order.",
    W.task_progressed: "A clip is ready, and others may follow.",
    **FINAL_SUMMARIES,
    W.clip_archived: "Our own copy of a clip is there.",
}


class TaskData(BaseModel):
    """The task as the event left it."""

    task: TaskRead


class TaskWebhook(BaseModel):
    """The body of a webhook that is about a task. Order by `data.task.version`: webhooks may arrive in any order."""

    type: TaskWebhookType
    timestamp: datetime
    data: TaskData


# Puts an event into the outbox: what it tells, whom, and in which shape, is its own business.
EventPublisher = Callable[[Session, Task, Event, SignedUrls, datetime], None]


def publish_to_webhook_url(
    session: Session, task: Task, event: Event, signed_urls: SignedUrls, due_at: datetime
) -> None:
    """Tell of an event, in this transaction, what callers hear of; the body shows the task as it is now."""
    kind = WEBHOOK_TYPES.get(event.type.value)
    if kind is None:
        return
    # What is being told may still change before the commit, and a later event tells of that.
    body = TaskWebhook.model_validate(
        {"type": kind, "timestamp": event.created_at, "data": {"task": read_task(task, {}, signed_urls)}}
    ).model_dump_json()
    outbound = OutboundEvent(event.id, kind, task.api_key_id, task.id, body.encode(), event.created_at, due_at)
    enqueue_on_commit(session, outbound)
    if task.webhook_url is not None and event.type in FINAL_TYPES:
        enqueue_to_url_on_commit(session, outbound, task.webhook_url)


async def receive_task_webhook(
    webhook: TaskWebhook,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Answer 2xx within 15 seconds; anything else is tried again later."""
