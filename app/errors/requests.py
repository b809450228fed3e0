"""Requests that cannot be served as they are: the caller has to change something, or to wait."""

from __future__ import annotations

from collections.abc import Mapping

from app.errors.base import AppError


class UnreadableRequest(AppError):
    """The request is not valid HTTP."""

    status, slug = 400, "unreadable-request"
    advice = "Its request line, headers or framing violate HTTP/1.1: correct the client or the proxy in between."


class UnreadableBody(AppError):
    """The body is not a JSON document that can be read."""

    status, slug = 400, "unreadable-body"
    advice = "Send one JSON document (RFC 8259) in UTF-8, with no NaN or Infinity and at most 64 levels deep."


class NotAuthenticated(AppError):
    """A valid key is needed."""

    status, slug = 401, "not-authenticated"
    advice = "Send `Authorization: Bearer <key>` with a key of this service that is neither revoked nor expired."
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class BudgetExceeded(AppError):
    """The budget of this key has no room for this."""

    status, slug = 402, "budget-exceeded"
    advice = "Wait until it begins anew, at `resets_at`; or send `hold: true`, and the task waits until there is room."
    dynamic_headers = ("Retry-After",)


class NotPermitted(AppError):
    """The key may not do this."""

    status, slug = 403, "not-permitted"
    advice = "Use a key with the scope that `detail` names; whoever runs this service gives it."


class NotFound(AppError):
    """There is nothing here."""

    status, slug = 404, "not-found"
    advice = "It does not exist, it was deleted, or it belongs to another key."

    def __init__(self) -> None:
        super().__init__()  # No detail: an absent resource and another key's must be indistinguishable.


class MethodNotAllowed(AppError):
    """This method is not allowed here."""

    status, slug = 405, "method-not-allowed"
    advice = "The `Allow` header lists the methods that are allowed."


class NotAcceptable(AppError):
    """No response is available in an accepted media type."""

    status, slug = 406, "not-acceptable"
    advice = "Include a media type in `Accept` that this route can return."


class RequestTimeout(AppError):
    """The request did not arrive in time."""

    status, slug = 408, "request-timeout"
    advice = "Send the whole request faster."


class TaskAlreadyFinal(AppError):
    """The task has already ended."""

    status, slug = 409, "task-already-final"
    advice = "There is nothing to cancel: read the task to see its result."


class TaskNotFinal(AppError):
    """The task has not ended yet."""

    status, slug = 409, "task-not-final"
    advice = "Wait until it ends, or cancel it first."


class TooManyEndpoints(AppError):
    """This key has as many webhook endpoints as it may have."""

    status, slug = 409, "too-many-endpoints"
    advice = "A key may have 100 endpoints: delete one that is no longer needed."


class IdTaken(AppError):
    """The id of the new task is another one's already."""

    status, slug = 409, "id-taken"
    advice = "Make a new UUID, at random, and send the order with it."


class ContentTooLarge(AppError):
    """The body is larger than is allowed here."""

    status, slug = 413, "content-too-large"
    advice = "The limit is 64 KiB, and 1 MiB for callbacks from the upstream."


class UriTooLong(AppError):
    """The path and query are too long."""

    status, slug = 414, "uri-too-long"
    advice = "Send a shorter path and query, with fewer filters."


class UnsupportedMediaType(AppError):
    """The body must be JSON in UTF-8, without a content coding."""

    status, slug = 415, "unsupported-media-type"
    advice = "Send `Content-Type: application/json`, and no `Content-Encoding`."
    headers: Mapping[str, str] = {"Accept": "application/json", "Accept-Encoding": "identity"}


class InvalidRequest(AppError):
    """The request is well-formed but cannot be accepted."""

    status, slug = 422, "invalid-request"
    advice = "`errors` lists each field that must change, and why."


class IdempotencyKeyReused(AppError):
    """This idempotency key was used with another body."""

    status, slug = 422, "idempotency-key-reused"
    advice = "Send the first body again to get its task, or use a new key to create another task."


class TaskDeleted(AppError):
    """The task of this idempotency key was deleted."""

    status, slug = 410, "task-deleted"
    advice = "No new task was created. To request the sound again, send a new `Idempotency-Key`."


class TooManyRequests(AppError):
    """This key's rate limit is exceeded."""

    status, slug = 429, "too-many-requests"
    advice = "Retry after `Retry-After`; `RateLimit-Policy` states the rate."
    dynamic_headers = ("RateLimit", "RateLimit-Policy", "Retry-After")


class HeadersTooLarge(AppError):
    """The request line and headers are too large."""

    status, slug = 431, "headers-too-large"
    advice = "Send fewer or shorter headers."


class NotArchivedYet(AppError):
    """Our copy is not ready yet."""

    status, slug = 409, "not-archived-yet"
    advice = "Our copy was waited for in vain: retry after `Retry-After`, or wait for the `clip.archived` event."
    headers: Mapping[str, str] = {"Retry-After": "5"}


class AudioLost(AppError):
    """No copy of this audio could be made, and the upstream no longer has it."""

    status, slug = 410, "audio-lost"
    advice = "Create a new task to get the sound again."


class RangeNotSatisfiable(AppError):
    """The range starts after the end of the file."""

    status, slug = 416, "range-not-satisfiable"
    advice = "`Content-Range` gives the size of the file."
    dynamic_headers = ("Content-Range",)
