"""
What can go wrong for a caller, and the words in which it is said (RFC 9457).

AppError
├── UnreadableRequest      400  the HTTP itself is broken
├── UnreadableBody         400  not a JSON document
├── NotAuthenticated       401
├── NotFound               404  absent, or another key's: one answer for both
├── MethodNotAllowed       405
├── NotAcceptable          406
├── RequestTimeout         408
├── TaskAlreadyFinal       409
├── TaskNotFinal           409
├── NotArchivedYet         409
├── AudioLost              410
├── ContentTooLarge        413
├── UnsupportedMediaType   415
├── RangeNotSatisfiable    416
├── InvalidRequest         422  read, and not accepted
├── IdempotencyKeyReused   422
├── TooManyRequests        429
├── HeadersTooLarge        431
├── InternalError          500
├── UpstreamUnavailable    502
├── DatabaseUnavailable    503
├── StorageUnavailable     503
├── ShuttingDown           503
└── TooManyConnections     503
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict
from urllib.parse import quote

from starlette.responses import Response

MAX_PROBLEM_BYTES, MAX_TEXT_BYTES, MAX_POINTER = 2000, 240, 120
RETRY_SOON = {"Retry-After": "2"}


class FieldError(TypedDict):
    """One thing wrong with a request, and where: a JSON pointer in its URI fragment form."""

    pointer: str
    detail: str


class AppError(Exception):
    """A request could not be served: the title says what happened, the advice what to do where no detail says more."""

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    advice: ClassVar[str]
    headers: Mapping[str, str] = {}

    def __init_subclass__(cls) -> None:
        cls.title = (cls.__doc__ or cls.__name__).strip().splitlines()[0]

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
    advice = "Its request line, headers or framing break HTTP/1.1: mend the client or the proxy in between."


class UnreadableBody(AppError):
    """The body is not a JSON document that can be read."""

    status, slug = 400, "unreadable-body"
    advice = "Send one JSON document (RFC 8259) in UTF-8, with no NaN or Infinity and at most 64 levels deep."


class NotAuthenticated(AppError):
    """A valid key is needed."""

    status, slug = 401, "not-authenticated"
    advice = "Send `Authorization: Bearer <key>` with a key of this service that was not revoked."
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class NotFound(AppError):
    """There is nothing here."""

    status, slug = 404, "not-found"
    advice = "It does not exist, it was erased, or it belongs to another key."

    def __init__(self) -> None:
        super().__init__()  # No detail can be given: what is absent and what is another key's must read alike.


class MethodNotAllowed(AppError):
    """This method is not possible here."""

    status, slug = 405, "method-not-allowed"
    advice = "The `Allow` header names those that are."


class NotAcceptable(AppError):
    """None of the accepted media types can be answered."""

    status, slug = 406, "not-acceptable"
    advice = "Let the `Accept` header admit what this answers."


class RequestTimeout(AppError):
    """The request did not arrive in time."""

    status, slug = 408, "request-timeout"
    advice = "Send the whole request faster."


class TaskAlreadyFinal(AppError):
    """The task has already ended."""

    status, slug = 409, "task-already-final"
    advice = "Nothing is left to be stopped: read the task to see how it ended."


class TaskNotFinal(AppError):
    """The task has not ended yet."""

    status, slug = 409, "task-not-final"
    advice = "Wait for its end, or cancel it first."


class ContentTooLarge(AppError):
    """The body is larger than is allowed here."""

    status, slug = 413, "content-too-large"
    advice = "Send less: 64 KiB is the most, and 1 MiB for the upstream's callbacks."


class UnsupportedMediaType(AppError):
    """The body must be JSON in UTF-8, without a content coding."""

    status, slug = 415, "unsupported-media-type"
    advice = "Send `Content-Type: application/json`, and no `Content-Encoding`."
    headers: Mapping[str, str] = {"Accept": "application/json", "Accept-Encoding": "identity"}


class InvalidRequest(AppError):
    """The request was read, and cannot be accepted."""

    status, slug = 422, "invalid-request"
    advice = "`errors` names each field that has to change, and why."


class IdempotencyKeyReused(AppError):
    """This idempotency key was used with another body."""

    status, slug = 422, "idempotency-key-reused"
    advice = "Send the first body again to have its task, or a new key to order another sound."


class TooManyRequests(AppError):
    """This key's rate limit is exceeded."""

    status, slug = 429, "too-many-requests"
    advice = "Come again after `Retry-After`; `RateLimit-Policy` tells the rate."


class HeadersTooLarge(AppError):
    """The request line and headers are too large."""

    status, slug = 431, "headers-too-large"
    advice = "Send fewer or shorter headers."


class InternalError(AppError):
    """Something failed on our side."""

    status, slug = 500, "internal-error"
    advice = "It is in the log of this service. Try again; an `Idempotency-Key` keeps an order from being made twice."


class UpstreamUnavailable(AppError):
    """The upstream gave no usable answer."""

    status, slug = 502, "upstream-unavailable"
    advice = "Try again in a few seconds."


class DatabaseUnavailable(AppError):
    """The database is away for the moment."""

    status, slug = 503, "database-unavailable"
    advice = "Nothing was stored. Send the request again after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


class ShuttingDown(AppError):
    """This instance is stopping."""

    status, slug = 503, "shutting-down"
    advice = "Send the request again; another instance or the next one answers it."
    headers: Mapping[str, str] = RETRY_SOON


class TooManyConnections(AppError):
    """This instance has no connection to spare."""

    status, slug = 503, "too-many-connections"
    advice = "Close idle connections, or come again after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


class NotArchivedYet(AppError):
    """Our copy is still being made."""

    status, slug = 409, "not-archived-yet"
    advice = "Come again after `Retry-After`, or listen for the `clip.archived` event."
    headers: Mapping[str, str] = {"Retry-After": "5"}


class AudioLost(AppError):
    """No copy of this audio could be made, and the upstream no longer has it."""

    status, slug = 410, "audio-lost"
    advice = "The reason is with the task's clip; order the sound again."


class RangeNotSatisfiable(AppError):
    """The range begins behind the end of the file."""

    status, slug = 416, "range-not-satisfiable"
    advice = "`Content-Range` tells how long the file is."


class StorageUnavailable(AppError):
    """The storage is away for the moment."""

    status, slug = 503, "storage-unavailable"
    advice = "Come again after `Retry-After`."
    headers: Mapping[str, str] = RETRY_SOON


def cases(root: type[AppError] = AppError) -> list[type[AppError]]:
    """Return every case of the tree, for whoever lists or documents them."""
    return [case for child in root.__subclasses__() for case in (child, *cases(child))]


def pointer_to(tokens: Iterable[str | int]) -> str:
    """
    Return the JSON pointer to a place in a request, as a URI fragment (RFC 6901 §6).

    Names come from the request and may be huge: a pointer that would be too
    long ends at the last ancestor that still fits.
    """
    pointer = "#"
    for token in tokens:
        escaped = str(token).replace("~", "~0").replace("/", "~1")
        longer = f"{pointer}/{quote(escaped, safe='~!$&()*+,;=:@', errors='replace')}"
        if len(longer) > MAX_POINTER:
            break
        pointer = longer
    return pointer


def problem(error: AppError) -> Response:
    """Return the answer for this error: problem+json, never over MAX_PROBLEM_BYTES."""
    body: dict[str, Any] = {"type": f"/problems/{error.slug}", "title": error.title, "status": error.status}
    body["detail"] = _clipped(error.detail)
    body |= {name: _clipped(value) if isinstance(value, str) else value for name, value in error.members.items()}
    content = _encoded(body)
    listed: list[FieldError] = []
    for field in error.errors:
        listed.append({"pointer": field["pointer"], "detail": _clipped(field["detail"])})
        longer = _encoded(body | {"errors": listed})
        if len(longer) > MAX_PROBLEM_BYTES:
            break
        content = longer
    # A 404 may be cached by default, and what is absent now may exist in a moment.
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **error.headers}
    return Response(content, error.status, headers, "application/problem+json")


def _clipped(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT_BYTES])
    return printable.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore")


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
