"""The history of a task, as a list and as a stream of Server-Sent Events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from app.database.failures import TRANSIENT
from app.database.wakeups import Subscription
from app.enums import TaskStatus
from app.models import Event
from app.signed_urls import SignedUrls
from app.tasks.event_schemas import EventPage, EventRead, History
from app.tasks.links.reading import Reader, ReaderDep
from app.tasks.links.views import linked_event
from app.tasks.routes import SignedUrlsDep, TasksDep
from app.tasks.schemas import TaskId
from app.tasks.transitions import EVENT_BY_STATUS, FINAL
from app.tasks.waiting import Waiters, WaitersDep, wait_for_disconnect
from app.web.deferred import DeferredResponse
from app.web.fields import EXAMPLE_EVENT_ID
from app.web.negotiation import prefers
from app.web.pagination import PAGE, Cursor, Limit, bad_cursor, decode_cursor, next_page
from app.web.routing import Router

router = Router(prefix="/v1/tasks", tags=["tasks"])

# In milliseconds: the reconnection time after a stop of this process, and after the end of a task, where an EventSource
# reconnects for ever and finds the same end again.
RETRY_AFTER_STOP = 1_000
RETRY_AFTER_END = 60_000
STREAM = "text/event-stream"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"vary", b"Accept"),
    # Some proxies buffer responses without this header.
    (b"x-accel-buffering", b"no"),
]
FINAL_EVENTS = frozenset(EVENT_BY_STATUS[status] for status in FINAL)
AS_STREAM: dict[str, Any] = {
    "description": "One page of events; or, with `Accept: text/event-stream`, all events up to the final one.",
    "content": {STREAM: {"schema": {"type": "string"}}},
    **PAGE[200],
}
LastEventId = Annotated[
    str | SkipJsonSchema[None],
    Header(
        alias="Last-Event-ID",
        description="In streams: the `id` of the last event that you received; only later ones are sent.",
        examples=[EXAMPLE_EVENT_ID],
    ),
]

LastEventIdOfUrl = Annotated[
    str | SkipJsonSchema[None],
    Query(
        alias="last_event_id",
        description="The same as `Last-Event-ID`, for an `EventSource` that is new: its page can set no header. The"
        " header counts where both are given.",
        examples=[EXAMPLE_EVENT_ID],
    ),
]


@dataclass(frozen=True, slots=True)
class _News:
    """The events of a task after a version: its current version, their text, and the version that they reach."""

    version: int
    text: str
    until: int
    is_over: bool


@dataclass(frozen=True, slots=True)
class _Audience:
    """Who reads a stream: by a key, with which it ends, or by a link, until `ends_at` on the event loop's clock."""

    key_hash: str
    ends_at: float
    render: Callable[[int, History], _News]

    @classmethod
    def of(cls, reader: Reader, signed_urls: SignedUrls) -> _Audience:
        if reader.link is None:
            return cls(reader.caller.key_hash, inf, _render)
        ends_at = asyncio.get_running_loop().time() + signed_urls.seconds_left(reader.link)
        return cls("", ends_at, _render_linked)


@router.get(
    "/{task_id}/events",
    operation_id="listTaskEvents",
    summary="List or stream a task's events",
    response_model=EventPage,
    responses={200: AS_STREAM, 204: {"description": "In streams: no event follows the one in `Last-Event-ID`."}},
)
async def list_events(
    request: Request,
    response: Response,
    tasks: TasksDep,
    waiters: WaitersDep,
    reader: ReaderDep,
    signed_urls: SignedUrlsDep,
    task_id: TaskId,
    limit: Limit = 50,
    cursor: Cursor = None,
    last_event_id: LastEventId = None,
    last_event_id_of_url: LastEventIdOfUrl = None,
) -> EventPage | Response:
    """
    List a task's events, oldest first, or stream them as they happen.

    With `Accept: text/event-stream` the response is a stream of Server-Sent Events that
    ends after the task's final event; `Last-Event-ID` resumes it, and is answered with 204
    where nothing follows. A stream that was opened by a signed link ends with it.
    """
    response.headers["Vary"] = "Accept"
    if prefers(request.headers.getlist("accept"), STREAM, "application/json"):
        # The header is the later of the two: an EventSource that reconnects keeps its URL.
        after = await tasks.version_of_event(reader.caller, task_id, last_event_id or last_event_id_of_url)
        audience = _Audience.of(reader, signed_urls)
        if after and await _is_over(waiters, audience, task_id, after):
            # The one status at which an EventSource does not come back (HTML §9.2.3).
            return Response(status_code=204, headers={"Cache-Control": "no-store", "Vary": "Accept"})
        return DeferredResponse(partial(_stream, waiters, audience, task_id, after))
    position = decode_cursor(request, cursor, 1)
    events = await tasks.list_events(reader.caller, task_id, _version(position[0]) if position else 0, limit + 1)
    page, following = next_page(request, response, events, limit, lambda event: (str(event.version),))
    shown = map(EventRead.model_validate, page)
    return EventPage(items=list(map(linked_event, shown) if reader.link else shown), next_cursor=following)


async def _is_over(waiters: Waiters, audience: _Audience, task_id: str, after: int) -> bool:
    """Whether a task has ended and nothing behind this version is left to stream."""
    news = await waiters.read_history(task_id, after, audience.render)
    return news is None or (news.is_over and news.until == after)


async def _stream(waiters: Waiters, audience: _Audience, task_id: str, after: int, *asgi: Any) -> None:
    """
    Send a task's events after a version as they happen, up to the final one, a stop of the process or the reader's end.

    No database connection is held between them. While the database is unreachable
    nothing is sent; the check for lost wake-ups continues the stream once it is back.
    """
    scope, receive, send = asgi
    clock = asyncio.get_running_loop().time

    async def write(text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
    with waiters.wakeups.subscribe(task_id) as subscription:
        subscription.key_hash = audience.key_hash
        is_over = scope["method"] == "HEAD"
        while not is_over and not subscription.is_closed:
            text, after, is_over = await _read_events(waiters, subscription, audience, task_id, after)
            if text:
                await write(text)
            while not is_over and (left := audience.ends_at - clock()) > 0:
                silence = min(waiters.keep_alive.total_seconds(), left)
                if await subscription.wait(silence, partial(wait_for_disconnect, receive)):
                    break
                await write(":\n\n")
            # A client that comes back to an expired link is refused, and stays away.
            is_over = is_over or clock() >= audience.ends_at
        if not is_over:
            await write(f"retry: {RETRY_AFTER_STOP}\n\n")
    await send({"type": "http.response.body"})


async def _read_events(
    waiters: Waiters, subscription: Subscription, audience: _Audience, task_id: str, after: int
) -> tuple[str, int, bool]:
    """The new events as text, the version that they reach, and whether the stream ends with them."""
    try:
        # Rendered once for all streams that are as far.
        news = await waiters.read_history(task_id, after, audience.render)
    except TRANSIENT:
        return "", after, False
    if news is None:
        return "", after, True
    subscription.version = news.version
    return news.text, news.until, news.is_over


def _render(after: int, history: History, show: Callable[[EventRead], EventRead] = lambda event: event) -> _News:
    is_over, events = history.status in FINAL, until_final(history.status, history.events)
    retry = f"retry: {RETRY_AFTER_END}\n\n" if is_over else ""
    until = events[-1].version if events else after
    shown = [show(EventRead.model_validate(event)) for event in events]
    return _News(history.version, retry + "".join(map(_serialize, shown)), until, is_over)


def _render_linked(after: int, history: History) -> _News:
    return _render(after, history, linked_event)


def until_final(status: TaskStatus, events: Sequence[Event]) -> Sequence[Event]:
    """The events to stream: none after the end of a task that has ended, all of one that was revived."""
    if status not in FINAL:
        return events
    ends = [number for number, event in enumerate(events, 1) if event.type in FINAL_EVENTS]
    return events[: ends[-1]] if ends else ()


def _serialize(event: EventRead) -> str:
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"


def _version(text: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise bad_cursor()
    return int(text)
