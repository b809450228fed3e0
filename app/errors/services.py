"""Failures of this service, and of what it depends on."""

from __future__ import annotations

from collections.abc import Mapping

from app.errors.base import RETRY_SOON, AppError


class InternalError(AppError):
    """Something failed on our side."""

    status, slug = 500, "internal-error"
    advice = "The log of this service has the cause. Retry; an `Idempotency-Key` prevents a second task."


class UnknownTransferCoding(AppError):
    """The body has a transfer coding that this service does not know."""

    status, slug = 501, "unknown-transfer-coding"
    advice = "Send the body with a `Content-Length`, or with `Transfer-Encoding: chunked` alone."


class UpstreamUnavailable(AppError):
    """The upstream gave no usable answer."""

    status, slug = 502, "upstream-unavailable"
    advice = "Retry in a few seconds."


class DatabaseUnavailable(AppError):
    """The database is temporarily unavailable."""

    status, slug = 503, "database-unavailable"
    advice = "Nothing was stored. Retry after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


class StatementTimedOut(AppError):
    """The database needed too long for this request."""

    status, slug = 503, "statement-timed-out"
    advice = "Nothing was stored. Ask for less, by a shorter time range or fewer filters, or retry after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


class ShuttingDown(AppError):
    """This instance is stopping."""

    status, slug = 503, "shutting-down"
    advice = "Retry; another instance, or this one after its restart, will answer."
    headers: Mapping[str, str] = RETRY_SOON


class TooManyConnections(AppError):
    """This instance has no free connection."""

    status, slug = 503, "too-many-connections"
    advice = "Close idle connections, or retry after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


class StorageUnavailable(AppError):
    """The storage is temporarily unavailable."""

    status, slug = 503, "storage-unavailable"
    advice = "Retry after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON
