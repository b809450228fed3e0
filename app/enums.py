"""The states, causes and types that rows, events and responses share; their docstrings are public in OpenAPI."""

from enum import StrEnum


class TaskStatus(StrEnum):
    """
    The state of a task.

    `queued`: stored, not yet sent. `submitting`: being sent to the upstream. `unconfirmed`: sent, but the response was
    lost. `generating`: the upstream is working on it. Final: `succeeded` with at least one clip, `failed`, `canceled`.
    """

    queued = "queued"
    submitting = "submitting"
    unconfirmed = "unconfirmed"
    generating = "generating"
    succeeded = "succeeded"
    failed = "failed"
    canceled = "canceled"


class Charge(StrEnum):
    """
    What a task may have cost.

    `none`: nothing was sent, or the upstream provably refused it. `possible`: the response to the submit was lost.
    `charged`: the upstream accepted the task. `refunded`: the upstream gave the credits back.
    """

    none = "none"
    possible = "possible"
    charged = "charged"
    refunded = "refunded"


class Priority(StrEnum):
    """
    Which of one key's own queued tasks goes first.

    `high`: before the others. `normal`: the default. `low`: after the others. Those of other keys are not affected.
    """

    high = "high"
    normal = "normal"
    low = "low"


class Scope(StrEnum):
    """
    What a key may do.

    `submit`: place, cancel and delete orders. `read`: read tasks, audio, usage and credits. `webhooks`: manage webhook
    endpoints and deliveries. `admin`: read and manage what belongs to all keys.
    """

    submit = "submit"
    read = "read"
    webhooks = "webhooks"
    admin = "admin"


class Window(StrEnum):
    """For how long a budget is given, in UTC. `day`: from midnight. `month`: from the first day of the month."""

    day = "day"
    month = "month"


class EntryKind(StrEnum):
    """
    What an entry of the ledger says.

    `reserve`: a task was stored that may cost this much. `settle`: the upstream charged it. `release`: nothing was
    charged, and what was reserved is free again. `refund`: the upstream gave the credits back. `adjust`: a correction.
    """

    reserve = "reserve"
    settle = "settle"
    release = "release"
    refund = "refund"
    adjust = "adjust"


class Period(StrEnum):
    """What a sum of usage is over. `hour`: an hour. `day`: a day in UTC."""

    hour = "hour"
    day = "day"


class ResolvedBy(StrEnum):
    """
    How the end of a task became known.

    `callback`: a callback from the upstream. `poll`: a query to the upstream. `adoption`: either of them, for a task
    that was `unconfirmed`. `replay`: a stored callback, applied again. `operator`: the operator of this service.
    """

    callback = "callback"
    poll = "poll"
    adoption = "adoption"
    replay = "replay"
    operator = "operator"


class ErrorCode(StrEnum):
    """
    Why a task failed.

    `invalid_request`: the upstream refused the request. `content_rejected`: the upstream refused the content.
    `insufficient_credits`: the upstream account had too few credits. `upstream_failed`: the upstream failed.
    `audio_missing`: the upstream reported success without audio. `outcome_unknown`: the response to the submit was lost
    and nothing followed. `deadline_exceeded`: the upstream did not finish in time. A late success revives a task that
    failed for one of the last two reasons.
    """

    invalid_request = "invalid_request"
    content_rejected = "content_rejected"
    insufficient_credits = "insufficient_credits"
    upstream_failed = "upstream_failed"
    audio_missing = "audio_missing"
    outcome_unknown = "outcome_unknown"
    deadline_exceeded = "deadline_exceeded"


class CallbackOutcome(StrEnum):
    """
    What a callback did to its task.

    `applied`: it changed the task. `stale`: it said nothing new. `mismatch`: it named another upstream task and changed
    nothing. `unreadable`: it could not be read.
    """

    applied = "applied"
    stale = "stale"
    mismatch = "mismatch"
    unreadable = "unreadable"


class EventType(StrEnum):
    """
    What happened to a task.

    `task.created`: it was stored. `task.submitted`: the upstream accepted it. `task.unconfirmed`: the response to the
    submit was lost. `task.progressed`: a clip is ready. `task.succeeded`, `task.failed`, `task.canceled`: it ended.
    `task.revived`: a failed task turned out to be running. `clip.archived`: the audio of a clip was stored.
    """

    task_created = "task.created"
    task_submitted = "task.submitted"
    task_unconfirmed = "task.unconfirmed"
    task_progressed = "task.progressed"
    task_succeeded = "task.succeeded"
    task_failed = "task.failed"
    task_canceled = "task.canceled"
    task_revived = "task.revived"
    clip_archived = "clip.archived"


class LinkScope(StrEnum):
    """
    What a signed link for browsers gives access to.

    `task`: the task's document. `events`: its events, as a list and as a stream. `audio`: the audio and the cover of
    its clips.
    """

    task = "task"
    events = "events"
    audio = "audio"


class WebhookType(StrEnum):
    """
    The type of a webhook.

    `task.submitted`: the upstream accepted the task. `task.progressed`: a clip is ready. `task.succeeded`,
    `task.failed`, `task.canceled`: the task ended. `clip.archived`: the audio of a clip was stored. `webhook.test`: a
    test. `endpoint.disabled`: another endpoint of the same key was disabled, because it failed. `budget.low`: 80 % of
    the key's budget is used. `budget.exhausted`: it has no room for another task. Both come once a window.
    """

    task_submitted = "task.submitted"
    task_progressed = "task.progressed"
    task_succeeded = "task.succeeded"
    task_failed = "task.failed"
    task_canceled = "task.canceled"
    clip_archived = "clip.archived"
    webhook_test = "webhook.test"
    endpoint_disabled = "endpoint.disabled"
    budget_low = "budget.low"
    budget_exhausted = "budget.exhausted"


class DeliveryStatus(StrEnum):
    """
    The state of a delivery.

    `pending`: an attempt is due or under way. `delivered`: the receiver answered with a 2xx status. `given_up`: no
    attempt will follow.
    """

    pending = "pending"
    delivered = "delivered"
    given_up = "given_up"


class Sweep(StrEnum):
    """
    What is being done to all deliveries of an endpoint, in batches.

    `give_up`: the endpoint was disabled. `recover`: the undelivered ones are due again. `erase`: it was deleted.
    """

    give_up = "give_up"
    recover = "recover"
    erase = "erase"


class DisabledBy(StrEnum):
    """
    Why an endpoint was disabled.

    `owner`: a request to this API. `gone`: the endpoint answered with status 410. `failing`: it failed for 5 days.
    """

    owner = "owner"
    gone = "gone"
    failing = "failing"
