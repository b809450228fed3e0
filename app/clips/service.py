"""The use cases on clips: reading their files and their lyrics."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from starlette.types import Receive

from app.auth.callers import Caller
from app.errors import AudioLost, NotArchivedYet, NotFound
from app.models import Clip, Task
from app.tasks.clips import needs_cover
from app.tasks.service import TaskService
from app.tasks.waiting import Waiters, wait_for_disconnect
from app.upstream.types import LyricWord

MAX_INDEX_LENGTH = 4


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the storage: `size` in bytes, `sha256` in hexadecimal, `title` of the clip that it belongs to."""

    key: str
    size: int
    sha256: str
    media_type: str
    title: str | None

    @property
    def etag(self) -> str:
        """The strong entity tag: the hash of the bytes."""
        return f'"{self.sha256}"'


class ClipService:
    """
    Each method is one use case. `index` is the text from the URL.

    All raise NotFound for an unknown clip and for another key's task.
    """

    # How long a request for audio waits until it is stored.
    audio_wait = timedelta(seconds=10)

    def __init__(self, tasks: TaskService, waiters: Waiters) -> None:
        self._tasks, self._waiters = tasks, waiters

    async def audio(self, caller: Caller, task_id: str, index: str, receive: Receive) -> StoredFile:
        """
        The audio of a clip once it is stored. Raises NotArchivedYet if it is not within `audio_wait`, AudioLost.

        A stop of the process, and a caller who hangs up (as `receive` tells), end the wait.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self.audio_wait.total_seconds()
        with self._waiters.wakeups.subscribe(task_id) as subscription:
            while True:
                task, clip = await self._find(caller, task_id, index)
                audio = _stored_audio(clip)
                if audio is not None:
                    return audio
                left = until - clock()
                if left <= 0 or subscription.is_closed:
                    raise NotArchivedYet
                subscription.version = task.version
                await subscription.wait(left, partial(wait_for_disconnect, receive))

    async def cover(self, caller: Caller, task_id: str, index: str) -> StoredFile:
        """The stored cover image of a clip. Raises NotArchivedYet, and NotFound for a clip without one."""
        _, clip = await self._find(caller, task_id, index)
        if clip.image_archived_at is not None and clip.image_key is not None:
            return StoredFile(
                clip.image_key, clip.image_size or 0, clip.image_sha256 or "", clip.image_type or "", clip.title
            )
        raise NotArchivedYet if needs_cover(clip) else NotFound

    async def lyrics(self, caller: Caller, task_id: str, index: str) -> list[LyricWord]:
        """The sung words of a clip, in order. Raises NotFound for a clip without any."""
        _, clip = await self._find(caller, task_id, index)
        if not clip.lyrics:
            raise NotFound
        return [LyricWord(**word) for word in clip.lyrics]

    async def _find(self, caller: Caller, task_id: str, index: str) -> tuple[Task, Clip]:
        task = await self._tasks.get_row(caller, task_id)
        number = int(index) if _is_index(index) else None
        clip = next((clip for clip in task.clips if clip.index == number), None)
        if clip is None:
            raise NotFound
        return task, clip


def _stored_audio(clip: Clip) -> StoredFile | None:
    """The audio of a clip, None while it is not stored. Raises AudioLost."""
    if clip.given_up_at is not None:
        raise AudioLost(detail=f"The download was retried for 14 days; the last problem was: {clip.archive_error}.")
    if clip.archived_at is None or clip.storage_key is None:
        return None
    return StoredFile(clip.storage_key, clip.size or 0, clip.sha256 or "", clip.content_type or "", clip.title)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MAX_INDEX_LENGTH and text == str(int(text))
