"""What happened, in order: every request that arrived and every callback that was sent."""

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
    """One request."""

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
    """A submit that made a task, whatever was answered."""
    status: int | None = None
    """The HTTP status; None if the connection was reset, the caller left, or there is no answer yet."""
    code: int | None = None
    """The code in the answer's envelope, if it had one."""


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
        """Note an entry; its result may be filled in later."""
        self._entries.append(entry)

    def find(self, **fields: str | None) -> Iterator[dict[str, Any]]:
        """The entries whose fields have these values; a None asks for nothing."""
        filters = {name: value for name, value in fields.items() if value is not None}
        # A copy, since readers run in threads of their own while the journal goes on.
        for entry in self._entries.copy():
            record = {"kind": entry.kind, **vars(entry)}
            if all(record.get(name) == value for name, value in filters.items()):
                yield record


class JournalMiddleware:
    """Notes each request as it arrives and the status it was answered with."""

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
    """The second to last part of a callback URL's path, where callers name their own task."""
    services = callback_url.partition("?")[0].split("/")
    return services[-2] if len(services) > 4 else None
