"""
Every error that a caller can receive, with its status, title and advice (RFC 9457).

AppError
├── UnreadableRequest      400  invalid HTTP
├── UnreadableBody         400  not a JSON document
├── NotAuthenticated       401
├── NotFound               404  absent, or another key's: the same answer
├── MethodNotAllowed       405
├── NotAcceptable          406
├── RequestTimeout         408
├── TaskAlreadyFinal       409
├── TaskNotFinal           409
├── NotArchivedYet         409
├── TooManyEndpoints       409
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

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict

RETRY_SOON = {"Retry-After": "2"}


class FieldError(TypedDict):
    """One error in a request: what is wrong, and where, as a JSON pointer in its URI fragment form (RFC 6901 §6)."""

    pointer: str
    detail: str


class AppError(Exception):
    """
    A request could not be served.

    The docstring of each subclass is its public `title`: editing it changes the API. `advice` is the `detail` of
    an error that is raised without one, and `dynamic_headers` names the headers that are given where it is raised.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    advice: ClassVar[str]
    headers: Mapping[str, str] = {}
    dynamic_headers: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls) -> None:
        cls.title = (cls.__doc__ or cls.__name__).strip()

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **members: str | int | None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.advice
        self.errors = errors
        self.headers = {**self.headers, **(headers or {})}
        self.members = members


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
    advice = "Send `Authorization: Bearer <key>` with a key of this service that is not revoked."
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


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


class StorageUnavailable(AppError):
    """The storage is temporarily unavailable."""

    status, slug = 503, "storage-unavailable"
    advice = "Retry after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


def cases(root: type[AppError] = AppError) -> list[type[AppError]]:
    """Return every class of the tree below `root`, in the order of definition."""
    return [case for child in root.__subclasses__() for case in (child, *cases(child))]
