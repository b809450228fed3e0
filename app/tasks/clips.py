"""The clips of a task: what reports say about them, and what is still to be archived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import accumulate
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from sqlalchemy import inspect

from app.database.engine import Session, on_commit
from app.database.records import new_row
from app.enums import EventType, TaskStatus
from app.models import QUESTIONS, Clip, Task
from app.tasks.events import EventRecorder
from app.tasks.transitions import is_about_another
from app.upstream.types import Report, ReportedClip

# How long the upstream keeps its files; what is not archived by then is lost.
UPSTREAM_RETENTION = timedelta(days=14)
# Of one task: reports can name new clips without end, and each is downloaded.
MAX_CLIPS = 50
# Covers and lyrics are tried this often, in some two hours: an outage may last as long.
MAX_EXTRA_ATTEMPTS = 12
# Of a page of tasks: to write so many takes the event loop some 50 ms.
MAX_PAGE_WORDS = 5000
# Set at once: of an attribute that was never set, each read asks for its default anew.
_UNKNOWN = {name: None for name, column in inspect(Clip).columns.items() if column.nullable}
# What a report says of a clip: the column, and the field of the report.
_REPORTED: Mapping[str, str] = {
    "upstream_clip_id": "upstream_clip_id",
    "title": "title",
    "tags": "tags",
    "duration": "duration",
    "model_name": "model_name",
    "image_url": "image_url",
    "upstream_audio_url": "audio_url",
    "source_audio_url": "source_audio_url",
}
_facts = attrgetter(*_REPORTED)


def merge_clips(
    task: Task, reported: Sequence[ReportedClip], now: datetime, *, refreshes: bool = True
) -> list[dict[str, Any]]:
    """Insert clips that have audio, up to MAX_CLIPS, and update known ones if `refreshes`; return the new ones."""
    fresh = []
    for position, item in enumerate(reported):
        if not item.has_audio:
            continue
        clip = find_clip(task, item, position)
        if clip is None and len(task.clips) >= MAX_CLIPS:
            continue
        if clip is None:
            place = {"task_id": task.id, "index": len(task.clips)}
            clip = new_row(task, Clip, {**_UNKNOWN, **place, "created_at": now, "due_at": now, "attempts": 0})
            task.clips.append(clip)
            fresh.append({"index": clip.index, "upstream_clip_id": item.upstream_clip_id, "title": item.title})
            update_clip(clip, item)
        elif refreshes:
            update_clip(clip, item)
    return fresh


def words_of(clips: Sequence[Clip | SimpleNamespace]) -> int:
    """How many words of lyrics these clips have."""
    return sum(len(clip.lyrics or ()) for clip in clips)


def fitting(words: Iterable[int]) -> int:
    """How many tasks with so many words of lyrics each have at most MAX_PAGE_WORDS together, at least one."""
    return max(1, sum(total <= MAX_PAGE_WORDS for total in accumulate(words)))


def lacks_clip(task: Task, reported: Sequence[ReportedClip]) -> bool:
    """Whether a report names a clip that we do not have, because it came without audio."""
    return any(not item.has_audio and find_clip(task, item, place) is None for place, item in enumerate(reported))


def find_clip(task: Task, reported: ReportedClip, position: int) -> Clip | None:
    """The clip that an item of a report is about: by its upstream id, or by its position where it has none."""
    if reported.upstream_clip_id is not None:
        return next((clip for clip in task.clips if clip.upstream_clip_id == reported.upstream_clip_id), None)
    return task.clips[position] if position < len(task.clips) else None


def update_clip(clip: Clip, reported: ReportedClip) -> None:
    """Overwrite a clip with every reported field; a field that is missing in the report keeps its value."""
    for name, field in _REPORTED.items():
        value = getattr(reported, field)
        if value is not None:
            setattr(clip, name, value)


def reported_facts(clips: Sequence[Clip]) -> list[Any]:
    """
    What reports have said of these clips until now, to be compared with what they say later.

    Reports that share a transaction are compared with each other, not with the rows, which are written at its end.
    """
    return [_facts(clip) for clip in clips]


def needs_audio(clip: Clip) -> bool:
    """Whether the audio is still to be archived."""
    return clip.archived_at is None and clip.given_up_at is None


def needs_cover(clip: Clip) -> bool:
    """Whether the cover image is still to be archived."""
    return clip.image_url is not None and clip.image_archived_at is None and clip.attempts <= MAX_EXTRA_ATTEMPTS


def needs_lyrics(clip: Clip, task: Task) -> bool:
    """Whether the lyrics are to be fetched: the upstream has them once the task has succeeded."""
    is_asked_for = task.grab_lyrics and task.status is TaskStatus.succeeded and clip.lyrics is None
    can_be_asked = task.upstream_task_id is not None and clip.upstream_clip_id is not None
    return is_asked_for and can_be_asked and clip.attempts <= MAX_EXTRA_ATTEMPTS


def schedule_lyrics(task: Task, now: datetime) -> None:
    """Make the clips due, so that their lyrics are fetched."""
    for clip in task.clips:
        if clip.due_at is None:
            clip.due_at, clip.lane = now, QUESTIONS
        clip.attempts = 0


def is_too_late(clip: Clip, now: datetime) -> bool:
    """Whether the upstream no longer has the audio."""
    return now - clip.created_at >= UPSTREAM_RETENTION


def storage_keys_of(clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
    """The storage keys of archived files, and those of files that may still be written."""
    files = [(clip.storage_key, clip.archived_at) for clip in clips]
    files += [(clip.image_key, clip.image_archived_at) for clip in clips]
    settled = [key for key, at in files if key is not None and at is not None]
    return settled, [key for key, at in files if key is not None and at is None]


class ClipLifecycle:
    """Writes changes of clips that come after the reports on their task, with their events. Never commits."""

    def __init__(self, recorder: EventRecorder) -> None:
        self._recorder = recorder

    def archived(self, session: Session, task: Task, clip: Clip, now: datetime) -> None:
        """Our copy of a clip's audio is complete; its size, type and hash are on the clip already."""
        clip.archived_at, clip.archive_error = now, None
        facts = {"index": clip.index, "content_type": clip.content_type, "size": clip.size, "sha256": clip.sha256}
        self._recorder.record(session, task, EventType.clip_archived, now, {"clips": [facts]})
        took = (now - clip.created_at).total_seconds()
        on_commit(session, partial(self._recorder.metrics.stages["archive"].observe, took))

    def give_up(self, session: Session, task: Task, clip: Clip, now: datetime) -> None:
        """No copy of a clip's audio could be made, and the upstream no longer has it."""
        clip.given_up_at = now
        self._recorder.bump_version(session, task, now)

    def store_lyrics(
        self, session: Session, task: Task, clip: Clip, words: list[dict[str, Any]], now: datetime
    ) -> None:
        """Store the words of a clip; none at all is normal for sounds."""
        clip.lyrics = words
        self._recorder.bump_version(session, task, now)

    def refresh_links(self, session: Session, task: Task, report: Report, now: datetime) -> None:
        """Store the links that a report gives for known clips; a report about another task changes nothing."""
        if is_about_another(task, report):
            return
        known = reported_facts(task.clips)
        for position, reported in enumerate(report.clips):
            clip = find_clip(task, reported, position)
            if clip is not None:
                update_clip(clip, reported)
        if reported_facts(task.clips) != known:
            self._recorder.bump_version(session, task, now)
