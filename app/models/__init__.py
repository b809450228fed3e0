"""The schema: every table, and which rows fall due."""

from app.models.budgets import Budget, LedgerEntry
from app.models.keys import ApiKey, AuditEntry, FormerKey, IdempotencyKey, RateLimitHit
from app.models.shared import CompatibleRevision, PaceSlot, PeriodicJob, QueueTag
from app.models.tasks import QUESTIONS, Callback, Clip, Event, StoredObject, Task, TaskLabel
from app.models.usage import SpentCharge, UsageSum
from app.models.webhooks import Delivery, DeliveryAttempt, EndpointSend, WebhookEndpoint

__all__ = [
    "QUESTIONS",
    "ApiKey",
    "AuditEntry",
    "Budget",
    "Callback",
    "Clip",
    "CompatibleRevision",
    "Delivery",
    "DeliveryAttempt",
    "EndpointSend",
    "Event",
    "FormerKey",
    "IdempotencyKey",
    "LedgerEntry",
    "PaceSlot",
    "PeriodicJob",
    "QueueTag",
    "RateLimitHit",
    "SpentCharge",
    "StoredObject",
    "Task",
    "TaskLabel",
    "UsageSum",
    "WebhookEndpoint",
]
