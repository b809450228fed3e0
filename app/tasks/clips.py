"""A task's clips: what a report says of them, and what of them is still to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from app.database.engine import Session
from app.enums import TaskStatus
from app.models import Clip, Task
from app.upstream.types import ReportedClip

# So long the upstream keeps its files; what could not be had by then is lost.
UPSTREAM_RETENTION = timedelta(days=14)
# Covers and words are tried for together with the audio, and then not for ever.
MAX_EXTRA_ATTEMPTS = 6


def merge_clips(
    task: Task, reported: Sequence[ReportedClip], now: datetime, *, freshens: bool = True
) -> list[dict[str, Any]]:
    """Add clips that have audio, due at once, and freshen those there are unless told not to; return what is new."""
    fresh = []
    for position, news in enumerate(reported):
        if not news.has_audio:
            continue
        clip = find_clip(task, news, position)
        if clip is None:
            clip = Clip(task_id=task.id, index=len(task.clips), created_at=now, due_at=now, attempts=0)
            task.clips.append(clip)
            fresh.append({"index": clip.index, "upstream_clip_id": news.upstream_clip_id, "title": news.title})
            update_clip(clip, news)
        elif freshens:
            update_clip(clip, news)
    return fresh


def find_clip(task: Task, news: ReportedClip, position: int) -> Clip | None:
    """The clip that a report's item is about: by its id upstream, or by its place where it has none."""
    if news.upstream_clip_id is not None:
        return next((clip for clip in task.clips if clip.upstream_clip_id == news.upstream_clip_id), None)
    return task.clips[position] if position < len(task.clips) else None


def update_clip(clip: Clip, news: ReportedClip) -> None:
    """Later words win, and silence takes nothing back."""
    words = {
        "upstream_clip_id": news.upstream_clip_id,
        "title": news.title,
        "tags": news.tags,
        "duration": news.duration,
        "model_name": news.model_name,
        "image_url": news.image_url,
        "upstream_audio_url": news.audio_url,
        "source_audio_url": news.source_audio_url,
    }
    for name, value in words.items():
        if value is not None:
            setattr(clip, name, value)


def any_modified(session: Session, clips: Sequence[Clip]) -> bool:
    """Whether anything about them is not written yet."""
    return any(session.is_modified(clip) for clip in clips)


def needs_audio(clip: Clip) -> bool:
    """Whether our copy of the audio is still to be made."""
    return clip.archived_at is None and clip.given_up_at is None


def needs_cover(clip: Clip) -> bool:
    """The same of the cover."""
    return clip.image_url is not None and clip.image_archived_at is None and clip.attempts <= MAX_EXTRA_ATTEMPTS


def needs_lyrics(clip: Clip, task: Task) -> bool:
    """Whether the words are to be asked for: they exist upstream once the task has succeeded."""
    is_asked_for = task.grab_lyrics and task.status is TaskStatus.succeeded and clip.lyrics is None
    can_be_asked = task.upstream_task_id is not None and clip.upstream_clip_id is not None
    return is_asked_for and can_be_asked and clip.attempts <= MAX_EXTRA_ATTEMPTS


def schedule_lyrics(task: Task, now: datetime) -> None:
    """Make the clips due for their words; those that are due for something else come to it by themselves."""
    for clip in task.clips:
        clip.due_at, clip.attempts = clip.due_at or now, 0


def is_too_late(clip: Clip, now: datetime) -> bool:
    """Whether the upstream no longer has the audio."""
    return now - clip.created_at >= UPSTREAM_RETENTION


def storage_keys_of(clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
    """The keys of the files that are kept, and of those that may be on their way."""
    files = [(clip.storage_key, clip.archived_at) for clip in clips]
    files += [(clip.image_key, clip.image_archived_at) for clip in clips]
    settled = [key for key, at in files if key is not None and at is not None]
    return settled, [key for key, at in files if key is not None and at is None]
