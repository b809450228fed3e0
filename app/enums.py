"""The words that rows, events and answers have in common: states, causes and kinds."""

from enum import StrEnum


class TaskStatus(StrEnum):
    """Where a task is in its life."""

    queued = "queued"
    submitting = "submitting"
    unconfirmed = "unconfirmed"
    generating = "generating"
    succeeded = "succeeded"
    failed = "failed"
    canceled = "canceled"


class Charge(StrEnum):
    """What a task may have cost."""

    none = "none"
    possible = "possible"
    charged = "charged"
    refunded = "refunded"


class ResolvedBy(StrEnum):
    """How we came to know a task's end."""

    callback = "callback"
    poll = "poll"
    adoption = "adoption"
    replay = "replay"
    operator = "operator"


class ErrorCode(StrEnum):
    """Why a task failed."""

    invalid_request = "invalid_request"
    content_rejected = "content_rejected"
    insufficient_credits = "insufficient_credits"
    upstream_failed = "upstream_failed"
    audio_missing = "audio_missing"
    outcome_unknown = "outcome_unknown"
    deadline_exceeded = "deadline_exceeded"


class CallbackOutcome(StrEnum):
    """What a callback did to its task."""

    applied = "applied"
    stale = "stale"
    mismatch = "mismatch"
    unreadable = "unreadable"


class EventType(StrEnum):
    """The facts that are kept and told."""

    task_created = "task.created"
    task_submitted = "task.submitted"
    task_unconfirmed = "task.unconfirmed"
    task_progressed = "task.progressed"
    task_succeeded = "task.succeeded"
    task_failed = "task.failed"
    task_canceled = "task.canceled"
    task_revived = "task.revived"
    clip_archived = "clip.archived"


class WebhookType(StrEnum):
    """What callers' endpoints are told."""

    task_submitted = "task.submitted"
    task_progressed = "task.progressed"
    task_succeeded = "task.succeeded"
    task_failed = "task.failed"
    task_canceled = "task.canceled"
    clip_archived = "clip.archived"
    webhook_test = "webhook.test"
    endpoint_disabled = "endpoint.disabled"


class DeliveryStatus(StrEnum):
    """What became of telling one endpoint of one event."""

    pending = "pending"
    delivered = "delivered"
    given_up = "given_up"


class DisabledBy(StrEnum):
    """Who or what ended the deliveries to an endpoint: its owner, its own 410, or days of failure."""

    owner = "owner"
    gone = "gone"
    failing = "failing"
