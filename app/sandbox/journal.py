"""The journal: all received requests and all callback attempts, in order."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_ENTRIES = 200_000
_UNRECORDED_PATHS = frozenset({"/journal", "/tasks", "/control"})


@dataclass
class RequestEntry:
    """One received request."""

    kind: ClassVar[str] = "request"

    method: str
    path: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic: float = field(default_factory=time.monotonic)
    task_id: str | None = None
    callback_url: str | None = None
    caller_task_id: str | None = None
    faults: list[str] = field(default_factory=list)
    created: bool = False
    """Whether this submit created a task, whatever the response was."""
    status: int | None = None
    """The HTTP status; None before the response, and if the connection was closed without one."""
    code: int | None = None
    """The code in the response's envelope, if it has one."""


@dataclass
class CallbackAttempt:
    """One POST of one callback."""

    kind: ClassVar[str] = "callback"

    task_id: str
    callback_url: str
    caller_task_id: str | None
    type: str
    attempt: int
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic: float = field(default_factory=time.monotonic)
    duration: float | None = None
    status: int | None = None
    error: str | None = None
    delivered: bool = False


class Journal:
    """The latest entries, oldest first."""

    def __init__(self) -> None:
        self._entries: deque[RequestEntry | CallbackAttempt] = deque(maxlen=_MAX_ENTRIES)

    def add(self, entry: RequestEntry | CallbackAttempt) -> None:
        """Add an entry; its result may be filled in later."""
        self._entries.append(entry)

    def find(self, **fields: str | None) -> Iterator[dict[str, Any]]:
        """The entries whose fields have these values; None matches every value."""
        filters = {name: value for name, value in fields.items() if value is not None}
        # Iterate over a copy: readers run in other threads while entries are added.
        for entry in self._entries.copy():
            record = {"kind": entry.kind, **vars(entry)}
            if all(record.get(name) == value for name, value in filters.items()):
                yield record


class JournalMiddleware:
    """Records each request when it arrives, and the status of its response."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNRECORDED_PATHS:
            await self._app(scope, receive, send)
            return
        entry = RequestEntry(scope["method"], scope["path"])
        self._journal.add(entry)
        scope["journal_entry"] = entry

        async def record_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        await self._app(scope, receive, record_status)


def caller_task_id(callback_url: str) -> str | None:
    """The second to last segment of a callback URL's path, where Soundpost puts the id of its task."""
    segments = callback_url.partition("?")[0].split("/")
    return segments[-2] if len(segments) > 4 else None
