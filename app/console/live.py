"""Streams that keep a page up to date: parts of it are rendered again when something has changed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import structlog
from starlette.responses import Response

from app.console.session import Visitor
from app.database.failures import TRANSIENT
from app.database.wakeups import Subscription
from app.errors import AppError
from app.tasks.waiting import Waiters, wait_for_disconnect
from app.web.deferred import DeferredResponse
from app.web.provided import provided

log = structlog.get_logger()

# At least and at most so long from one rendering to the next: ages grow, and a wake-up may be lost.
PAUSE, LOOK_EVERY = timedelta(seconds=1), timedelta(seconds=5)
# Then the browser asks again, with a session that may have ended.
MAX_AGE = timedelta(minutes=15)
# In one process: while tasks change, each costs some 15 ms of CPU a second. Who comes later sees a page that stays as
# it is. No key takes all of them.
MAX_STREAMS, MAX_STREAMS_EACH = 16, 8
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # Some proxies buffer responses without this header.
    (b"x-accel-buffering", b"no"),
]
LAST = {name.decode(): value.decode() for name, value in HEADERS}
COME_BACK = timedelta(hours=1)
Render = Callable[[], Awaitable[str]]


class LiveStreams:
    """The open streams of one process."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._open = Counter[str]()

    def respond(self, visitor: Visitor, topic: str, render: Render) -> Response:
        """
        Send what `render` gives now, and again whenever a commit notifies this topic: a task's id, or EVERY_TASK.

        It gives `<hx-partial>` elements, each with the place in the page that it is for. The stream ends with the
        visitor's key and with the process.
        """
        key_hash = visitor.caller.key_hash
        if self._open[key_hash] >= MAX_STREAMS_EACH or self._open.total() >= MAX_STREAMS:
            # Nothing is put into the page, and nobody comes back for it.
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return DeferredResponse(partial(self._stream, key_hash, topic, render))

    async def _stream(self, key_hash: str, topic: str, render: Render, *asgi: Any) -> None:
        scope, receive, send = asgi
        self._open[key_hash] += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            with self._waiters.wakeups.subscribe(topic) as subscription:
                subscription.key_hash, subscription.version = key_hash, None
                if scope["method"] != "HEAD":
                    await _send_changes(subscription, render, receive, partial(_write, send))
            await _write(send, "retry: 1000\n\n")
            await send({"type": "http.response.body"})
        finally:
            self._open[key_hash] -= 1
            # Of keys without streams nothing is kept.
            self._open += Counter()


LiveDep = Annotated[LiveStreams, provided(LiveStreams)]


async def _send_changes(
    subscription: Subscription, render: Render, receive: Any, write: Callable[[str], Awaitable[None]]
) -> None:
    ends_at, sent = asyncio.get_running_loop().time() + MAX_AGE.total_seconds(), ""
    while not subscription.is_closed and asyncio.get_running_loop().time() < ends_at:
        text = await _render(render)
        # A comment where nothing is new shows whether anybody listens.
        await write(_message(text) if text and text != sent else ":\n\n")
        sent = text or sent
        await _rest(subscription, partial(wait_for_disconnect, receive))


async def _render(render: Render) -> str:
    """The parts as they are now; nothing while the database is away."""
    try:
        return await render()
    except (AppError, *TRANSIENT) as error:
        log.warning("page_not_updated", error=type(error).__name__)
        return ""


async def _rest(subscription: Subscription, disconnected: Callable[[], Awaitable[None]]) -> None:
    """Return PAUSE after the beginning if there is a change by then, or else at the next one, or after LOOK_EVERY."""
    clock = asyncio.get_running_loop().time
    began, is_changed = clock(), False
    while not subscription.is_closed:
        left = (PAUSE if is_changed else LOOK_EVERY).total_seconds() - (clock() - began)
        if left <= 0:
            return
        is_changed |= await subscription.wait(left, disconnected)


def last_message(text: str) -> Response:
    """These parts, once, to a page that is not to ask again before somebody does something."""
    return Response(f"retry: {int(COME_BACK.total_seconds() * 1000)}\n{_message(text)}", headers=LAST)


def _message(text: str) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines() if line.strip())
    return f"{lines}\n"


async def _write(send: Any, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
