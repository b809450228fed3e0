"""Recording the events of tasks: each raises the version of its task, and is published to callers as a webhook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import structlog
from pydantic import BaseModel, Field

from app.budgets.admission import BudgetWebhookType, Notice, Verdict, Wanted, admit
from app.budgets.booking import book, post_on_commit
from app.budgets.ledger import Entry
from app.budgets.schemas import BudgetRead
from app.database.base import new_id
from app.database.engine import Session, on_commit
from app.database.records import new_row
from app.database.wakeups import notify_on_commit
from app.enums import Charge, EventType, ResolvedBy, TaskStatus, WebhookType
from app.models import Event, Task
from app.observability.metrics import Metrics
from app.observability.redaction import without_prompt
from app.signed_urls import SignedUrls
from app.tasks.schemas import TaskRead, read_task
from app.tasks.transitions import EVENT_BY_STATUS, FINAL, can_move
from app.webhooks.openapi import WebhookId, WebhookSignature, WebhookTimestamp
from app.webhooks.outbox import OutboundEvent, enqueue_on_commit, enqueue_to_url_on_commit, may_have_endpoints

log = structlog.get_logger()
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

BUDGET_SUMMARIES: Mapping[WebhookType, str] = {
    W.budget_low: "Your budget is 80 % used",
    W.budget_exhausted: "Your budget has no room for another task",
}


class TaskData(BaseModel):
    """The subject of a webhook about a task."""

    task: TaskRead = Field(description="The task as the event left it; `queue_position` is always null.")


class TaskWebhook(BaseModel):
    """The body of a webhook about a task. Webhooks arrive in any order: `data.task.version` tells which is later."""

    type: TaskWebhookType = Field(description="The type of the event.", examples=["task.succeeded"])
    timestamp: datetime = Field(description="When it happened.", examples=["2026-01-31T08:00:42Z"])
    data: TaskData = Field(description="The task that it happened to.")


class BudgetData(BaseModel):
    """The subject of a webhook about a budget."""

    budget: BudgetRead = Field(description="The budget as `GET /v1/budget` shows it, with what has just been reserved.")


class BudgetWebhook(BaseModel):
    """The body of a webhook about the budget of your key: each comes once in a window."""

    type: BudgetWebhookType = Field(description="The type of the event.", examples=["budget.low"])
    timestamp: datetime = Field(description="When it happened.", examples=["2026-01-31T08:00:42Z"])
    data: BudgetData = Field(description="The budget that it happened to.")


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


async def receive_budget_webhook(
    webhook: BudgetWebhook,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Answer with a 2xx status within 15 seconds; otherwise the webhook is sent again later."""


class EventRecorder:
    """Writes in the transaction of its caller. `first_attempt_delay` comes before the first attempt of a webhook."""

    def __init__(
        self,
        signed_urls: SignedUrls,
        publishers: Sequence[EventPublisher],
        first_attempt_delay: timedelta,
        metrics: Metrics,
    ) -> None:
        self._signed_urls, self._publishers, self._first_attempt_delay = signed_urls, publishers, first_attempt_delay
        self.metrics = metrics

    def transition(
        self, session: Session, task: Task, status: TaskStatus, now: datetime, changed: dict[str, Any] | None = None
    ) -> None:
        """Make an allowed transition, and record its event if it has one. Raises AssertionError for any other."""
        if not can_move(task.status, status):
            raise AssertionError(f"no transition leads from {task.status} to {status}")
        task.status = status
        self.count_transition(session, task, now)
        data = {"status": status, "charge": task.charge, **(changed or {})}
        if status in EVENT_BY_STATUS:
            self.record(session, task, EVENT_BY_STATUS[status], now, data)
        else:
            self.bump_version(session, task, now)

    async def admit(
        self, session: Session, wanted: Sequence[Wanted], now: datetime, lowest_price: int
    ) -> Sequence[Verdict]:
        """Decide about orders as `admit` of budgets does, and tell callers where their budget comes to an end."""
        verdicts, notices = await admit(session, wanted, now, lowest_price)
        for notice in notices:
            self._tell_of_budget(session, notice, now)
        return verdicts

    def note_created(self, session: Session, tasks: Sequence[SimpleNamespace], now: datetime) -> None:
        """Write what stored tasks have reserved to the ledger, and count them once they are committed."""
        for task in tasks:
            if task.booked is not None:
                reserved = Entry(task.api_key_id, task.id, task.booked, task.price, task.reserved_at, now)
                post_on_commit(session, reserved)
        on_commit(session, partial(self.metrics.created.inc, len(tasks)))

    def count_transition(self, session: Session, task: Task, now: datetime) -> None:
        """Count, once it is committed, that a task has come to its state now."""
        metrics, status = self.metrics, task.status
        via = task.resolved_by if status in FINAL else None
        created_at, submitted_at, code = task.created_at, task.submitted_at, task.error_code
        is_first_post = status is TaskStatus.submitting and task.posts == 1

        def count() -> None:
            metrics.transitions[status, via].inc()
            if is_first_post:
                metrics.stages["queue"].observe((now - created_at).total_seconds())
            if status not in FINAL:
                return
            metrics.durations[status].observe((now - created_at).total_seconds())
            if via not in (None, ResolvedBy.operator) and submitted_at is not None:
                metrics.stages["upstream"].observe((now - submitted_at).total_seconds())
            if status is TaskStatus.failed and code is not None:
                metrics.failures[code].inc()

        on_commit(session, count)

    def count_charge(self, session: Session, before: Charge, after: Charge) -> None:
        """Count, once it is committed, what the upstream has charged or given back."""
        charges, is_refunded = self.metrics.charges, after is Charge.refunded
        # What is given back was charged, though no report may have said so.
        if before not in charges and after in charges:
            on_commit(session, charges[Charge.charged].inc)
        if is_refunded and before is not after:
            on_commit(session, charges[Charge.refunded].inc)

    def record(self, session: Session, task: Task, kind: EventType, now: datetime, data: dict[str, Any]) -> None:
        """Insert an event and publish it."""
        self.bump_version(session, task, now)
        values = {"id": new_id(), "task_id": task.id, "version": task.version, "type": kind, "created_at": now}
        event = new_row(task, Event, {**values, "data": data})
        session.add(event)
        if kind is EventType.task_failed:
            ids = {"task_id": task.id, "upstream_task_id": task.upstream_task_id, "api_key_id": task.api_key_id}
            message = data["error"]["message"]
            error = {**data["error"], "message": message and without_prompt(message, task.prompt)}
            on_commit(session, partial(log.warning, "task_failed", **ids, **error))
        for publish in self._publishers:
            publish(session, task, event, self._signed_urls, now + self._first_attempt_delay)

    def _tell_of_budget(self, session: Session, notice: Notice, now: datetime) -> None:
        """Publish to a caller how its budget stands."""
        data = BudgetData(budget=notice.budget)
        body = BudgetWebhook(type=notice.kind, timestamp=now, data=data).model_dump_json().encode()
        due_at = now + self._first_attempt_delay
        enqueue_on_commit(session, OutboundEvent(new_id(), notice.kind, notice.api_key_id, None, body, now, due_at))

    def bump_version(self, session: Session, task: Task, now: datetime) -> None:
        """Raise the version for a change without an event, notify the waits for this task, and keep its ledger."""
        task.version += 1
        task.updated_at = now
        task.booked, task.reserved_at = book(session, task, now, is_final=task.status in FINAL)
        notify_on_commit(session, task.id)
