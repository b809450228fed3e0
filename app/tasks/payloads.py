"""The bodies of webhooks about tasks, and their publication to the outbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.database.engine import Session
from app.enums import WebhookType
from app.models import Event, Task
from app.signed_urls import SignedUrls
from app.tasks.schemas import TaskRead, read_task
from app.tasks.transitions import EVENT_BY_STATUS, FINAL
from app.webhooks.openapi import WebhookId, WebhookSignature, WebhookTimestamp
from app.webhooks.outbox import OutboundEvent, enqueue_on_commit, enqueue_to_url_on_commit, may_have_endpoints

W = WebhookType
TaskWebhookType = Literal[
    W.task_submitted, W.task_progressed, W.task_succeeded, W.task_failed, W.task_canceled, W.clip_archived
]

WEBHOOK_TYPES: Mapping[str, WebhookType] = {kind.value: kind for kind in WebhookType}
# The types that are sent to a task's own webhook_url.
FINAL_TYPES = frozenset(EVENT_BY_STATUS[status] for status in FINAL)

FINAL_SUMMARIES: Mapping[WebhookType, str] = {
    W.task_succeeded: "A task succeeded",
    W.task_failed: "A task failed",
    W.task_canceled: "A task was canceled",
}
SUMMARIES: Mapping[WebhookType, str] = {
    W.task_submitted: "The upstream accepted a task",
    W.task_progressed: "A clip of a task is ready",
    **FINAL_SUMMARIES,
    W.clip_archived: "The audio of a clip was stored",
}


class TaskData(BaseModel):
    """The subject of a webhook about a task."""

    task: TaskRead = Field(description="The task as the event left it; `queue_position` is always null.")


class TaskWebhook(BaseModel):
    """The body of a webhook about a task. Webhooks arrive in any order: `data.task.version` tells which is later."""

    type: TaskWebhookType = Field(description="The type of the event.", examples=["task.succeeded"])
    timestamp: datetime = Field(description="When it happened.", examples=["2026-01-31T08:00:42Z"])
    data: TaskData = Field(description="The task that it happened to.")


# Enqueues the deliveries of an event, if it has any, in the transaction that records it; due at the given time.
EventPublisher = Callable[[Session, Task, Event, SignedUrls, datetime], None]


def publish_to_webhook_url(
    session: Session, task: Task, event: Event, signed_urls: SignedUrls, due_at: datetime
) -> None:
    """Enqueue the webhooks about an event, if its type has any; the body shows the task as it is now."""
    kind = WEBHOOK_TYPES.get(event.type.value)
    url = task.webhook_url if event.type in FINAL_TYPES else None
    has_endpoints = may_have_endpoints(session, task.api_key_id)
    if kind is None or not (has_endpoints or url):
        return
    # The task may still change before the commit; the event of that change publishes it again.
    body = TaskWebhook.model_validate(
        {"type": kind, "timestamp": event.created_at, "data": {"task": read_task(task, {}, signed_urls)}}
    ).model_dump_json()
    outbound = OutboundEvent(event.id, kind, task.api_key_id, task.id, body.encode(), event.created_at, due_at)
    if has_endpoints:
        enqueue_on_commit(session, outbound)
    if url is not None:
        enqueue_to_url_on_commit(session, outbound, url)


async def receive_task_webhook(
    webhook: TaskWebhook,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Answer with a 2xx status within 15 seconds; otherwise the webhook is sent again later."""
