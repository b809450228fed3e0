"""The schema: every table, and which rows fall due."""

from app.models.keys import ApiKey, FormerKey, IdempotencyKey, RateLimitHit
from app.models.shared import CompatibleRevision, PaceSlot, PeriodicJob
from app.models.tasks import QUESTIONS, Callback, Clip, Event, StoredObject, Task, TaskLabel
from app.models.usage import SpentCharge, UsageSum
from app.models.webhooks import Delivery, DeliveryAttempt, WebhookEndpoint

__all__ = [
    "QUESTIONS",
    "ApiKey",
    "Callback",
    "Clip",
    "CompatibleRevision",
    "Delivery",
    "DeliveryAttempt",
    "Event",
    "FormerKey",
    "IdempotencyKey",
    "PaceSlot",
    "PeriodicJob",
    "RateLimitHit",
    "SpentCharge",
    "StoredObject",
    "Task",
    "TaskLabel",
    "UsageSum",
    "WebhookEndpoint",
]
