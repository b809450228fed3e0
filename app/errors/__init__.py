"""
Every error that a caller can receive, with its status, title and advice (RFC 9457).

AppError
├── UnreadableRequest      400  invalid HTTP
├── UnreadableBody         400  not a JSON document
├── NotAuthenticated       401
├── BudgetExceeded         402
├── NotPermitted           403
├── NotFound               404  absent, or another key's: the same answer
├── MethodNotAllowed       405
├── NotAcceptable          406
├── RequestTimeout         408
├── TaskAlreadyFinal       409
├── TaskNotFinal           409
├── NotArchivedYet         409
├── TooManyEndpoints       409
├── IdTaken                409
├── AudioLost              410
├── TaskDeleted            410
├── ContentTooLarge        413
├── UriTooLong             414
├── UnsupportedMediaType   415
├── RangeNotSatisfiable    416
├── InvalidRequest         422  well-formed, but not acceptable
├── IdempotencyKeyReused   422
├── TooManyRequests        429
├── HeadersTooLarge        431
├── InternalError          500
├── UnknownTransferCoding  501
├── UpstreamUnavailable    502
├── DatabaseUnavailable    503
├── StatementTimedOut      503
├── StorageUnavailable     503
├── ShuttingDown           503
└── TooManyConnections     503
"""

from __future__ import annotations

from app.errors.base import AppError, FieldError, cases
from app.errors.requests import (
    AudioLost,
    BudgetExceeded,
    ContentTooLarge,
    HeadersTooLarge,
    IdempotencyKeyReused,
    IdTaken,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotArchivedYet,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RangeNotSatisfiable,
    RequestTimeout,
    TaskAlreadyFinal,
    TaskDeleted,
    TaskNotFinal,
    TooManyEndpoints,
    TooManyRequests,
    UnreadableBody,
    UnreadableRequest,
    UnsupportedMediaType,
    UriTooLong,
)
from app.errors.services import (
    DatabaseUnavailable,
    InternalError,
    ShuttingDown,
    StatementTimedOut,
    StorageUnavailable,
    TooManyConnections,
    UnknownTransferCoding,
    UpstreamUnavailable,
)

__all__ = [
    "AppError",
    "AudioLost",
    "BudgetExceeded",
    "ContentTooLarge",
    "DatabaseUnavailable",
    "FieldError",
    "HeadersTooLarge",
    "IdTaken",
    "IdempotencyKeyReused",
    "InternalError",
    "InvalidRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotArchivedYet",
    "NotAuthenticated",
    "NotFound",
    "NotPermitted",
    "RangeNotSatisfiable",
    "RequestTimeout",
    "ShuttingDown",
    "StatementTimedOut",
    "StorageUnavailable",
    "TaskAlreadyFinal",
    "TaskDeleted",
    "TaskNotFinal",
    "TooManyConnections",
    "TooManyEndpoints",
    "TooManyRequests",
    "UnknownTransferCoding",
    "UnreadableBody",
    "UnreadableRequest",
    "UnsupportedMediaType",
    "UpstreamUnavailable",
    "UriTooLong",
    "cases",
]
