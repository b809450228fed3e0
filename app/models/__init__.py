"""The schema: every table, and which rows fall due."""

from app.models.keys import ApiKey, DailyCharge, FormerKey, IdempotencyKey, RateLimitHit, SpentCharge
from app.models.shared import PaceSlot, PeriodicJob
from app.models.tasks import QUESTIONS, Callback, Clip, Event, StoredObject, Task
from app.models.webhooks import Delivery, DeliveryAttempt, WebhookEndpoint

__all__ = [
    "QUESTIONS",
    "ApiKey",
    "Callback",
    "Clip",
    "DailyCharge",
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
    "WebhookEndpoint",
]
