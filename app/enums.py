"""The enums that rows, events and responses share: states, causes and types."""

from enum import StrEnum


class TaskStatus(StrEnum):
    """The state of a task."""

    queued = "queued"
    submitting = "submitting"
    unconfirmed = "unconfirmed"
    generating = "generating"
    succeeded = "succeeded"
    failed = "failed"
    canceled = "canceled"


class Charge(StrEnum):
    """Whether the upstream has charged for a task."""

    none = "none"
    possible = "possible"
    charged = "charged"
    refunded = "refunded"


class ResolvedBy(StrEnum):
    """What the final state of a task was learned from."""

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
    """What a callback changed: `applied` something, or nothing, and why."""

    applied = "applied"
    stale = "stale"
    mismatch = "mismatch"
    unreadable = "unreadable"


class EventType(StrEnum):
    """The types of a task's events."""

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
    """The types of webhooks."""

    task_submitted = "task.submitted"
    task_progressed = "task.progressed"
    task_succeeded = "task.succeeded"
    task_failed = "task.failed"
    task_canceled = "task.canceled"
    clip_archived = "clip.archived"
    webhook_test = "webhook.test"
    endpoint_disabled = "endpoint.disabled"


class DeliveryStatus(StrEnum):
    """The state of a delivery."""

    pending = "pending"
    delivered = "delivered"
    given_up = "given_up"


class DisabledBy(StrEnum):
    """What disabled an endpoint: its owner, its own 410, or failures for days."""

    owner = "owner"
    gone = "gone"
    failing = "failing"
