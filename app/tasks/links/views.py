"""What signed links show: the task without what is its owner's alone, with links of the same scope and expiry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from app.enums import LinkScope
from app.signed_urls import Link, SignedUrls
from app.tasks.event_schemas import EventRead
from app.tasks.links.schemas import LinkedTask, LinksRead
from app.tasks.order_schemas import LinksCreate
from app.tasks.schemas import ClipRead, TaskRead
from app.tasks.waiting import TaskSnapshot, Wait, snapshot_of


def make_links(signed_urls: SignedUrls, task_id: str, clips: Iterable[int], order: LinksCreate) -> LinksRead:
    """Signed links to a task, and to the audio of the clips with these indexes."""
    link = signed_urls.browser(order.scope, order.ttl)
    audio = [url for index in clips if (url := signed_urls.file(link, task_id, index, "audio"))]
    return LinksRead(
        task_url=signed_urls.task(link, task_id),
        events_url=signed_urls.events(link, task_id),
        audio_urls=audio if LinkScope.audio in link.scope else None,
        expires_at=datetime.fromtimestamp(link.expires, UTC),
    )


def with_links(signed_urls: SignedUrls, order: LinksCreate | None, snapshot: TaskSnapshot) -> TaskSnapshot:
    """A task that was ordered, with the links that its order asked for."""
    if order is None:
        return snapshot
    clips = [clip["index"] for clip in json.loads(snapshot.body)["clips"] if clip["audio_url"]]
    links = make_links(signed_urls, snapshot.task_id, clips, order).model_dump_json().encode()
    return replace(snapshot, body=b'%b,"links":%b}' % (snapshot.body[:-1], links))


@dataclass(frozen=True, slots=True)
class LinkedView:
    """How a task looks to those who have a link; equal links have equal views."""

    signed_urls: SignedUrls
    link: Link

    def __call__(self, task: TaskRead) -> TaskSnapshot:
        """The task without what a link keeps back."""
        shown = task.model_dump(exclude={"metadata", "webhook_url", "error", "clips"})
        clips = [self._clip(task.id, clip) for clip in task.clips]
        body = LinkedTask(**shown, error=task.error and task.error.model_dump(), clips=clips).model_dump_json().encode()
        return replace(snapshot_of(task), body=body)

    def ending(self, wait: Wait) -> Wait:
        """A wait that ends with the link."""
        ends_at = asyncio.get_running_loop().time() + self.signed_urls.seconds_left(self.link)
        return replace(wait, until=min(wait.until, ends_at))

    def _clip(self, task_id: str, clip: ClipRead) -> ClipRead:
        found = {"audio_url": "audio", "image_url": "image"}
        links = {
            field: self.signed_urls.file(self.link, task_id, clip.index, name) if getattr(clip, field) else None
            for field, name in found.items()
        }
        return clip.model_copy(update={"upstream_audio_url": None, **links})


def linked_event(event: EventRead) -> EventRead:
    """An event as links show it: without the upstream's words."""
    error: Any = event.data.get("error")
    if not error:
        return event
    words = {name: value for name, value in error.items() if name != "message"}
    return event.model_copy(update={"data": {**event.data, "error": words}})
