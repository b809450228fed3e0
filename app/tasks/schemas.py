"""The shapes of tasks with their clips."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from app.enums import Charge, ErrorCode, Priority, ResolvedBy, TaskStatus
from app.models import Clip, Task
from app.signed_urls import SignedUrls
from app.web import Moment, Text
from app.web.fields import EXAMPLE_TASK_ID, canonical_id
from app.web.pagination import Cursor, Limit, NextCursor

MAX_QUEUE_POSITION = 1000

TaskId = Annotated[
    str,
    Path(description="The `id` of one of your tasks, or the same UUID with dashes.", examples=[EXAMPLE_TASK_ID]),
    AfterValidator(canonical_id),
]


class TaskFilters(BaseModel):
    """Which tasks to list, and from where."""

    status: TaskStatus | SkipJsonSchema[None] = Field(
        default=None, description="Only tasks with this status.", examples=["succeeded"]
    )
    model: Text | SkipJsonSchema[None] = Field(default=None, description="Only tasks for this model.", examples=["V5"])
    created_after: Moment | SkipJsonSchema[None] = Field(
        default=None, description="Only tasks created after this time (RFC 3339).", examples=["2026-01-31T08:00:00Z"]
    )
    created_before: Moment | SkipJsonSchema[None] = Field(
        default=None, description="Only tasks created before this time (RFC 3339).", examples=["2026-02-01T08:00:00Z"]
    )
    limit: Limit = 50
    cursor: Cursor = None


class TaskError(BaseModel):
    """Why a task failed: this service's code, and the upstream's message and code where there are any."""

    code: ErrorCode = Field(description="Why the task failed.", examples=["content_rejected"])
    message: str | None = Field(
        description="An explanation for people, often the upstream's own; null where there is none.",
        examples=["The prompt contains words that are not allowed."],
    )
    upstream_code: int | None = Field(
        description="The upstream's own error code; null where the failure did not come from the upstream.",
        examples=[400],
    )


class LyricRead(BaseModel):
    """One sung word and when it is sung."""

    word: str = Field(description="The word as sung, with its punctuation.", examples=["rain"])
    start: float = Field(description="When the word begins, in seconds from the beginning of the clip.", examples=[1.2])
    end: float = Field(description="When the word ends, in seconds from the beginning of the clip.", examples=[1.65])


class ClipRead(BaseModel):
    """One audio result of a task."""

    index: int = Field(
        description="The clip's position in its task, from 0; it is part of the clip's URLs.",
        examples=[0],
        json_schema_extra={"minimum": 0},
    )
    upstream_clip_id: str | None = Field(
        description="The upstream's id for the clip; null where it gave none.", examples=["8551662c-0f3a-4c55"]
    )
    title: str | None = Field(description="The upstream's title; null where it gave none.", examples=["Attic Rain"])
    tags: str | None = Field(
        description="The upstream's description of the style; null where it gave none.", examples=["ambient, rain"]
    )
    duration: float | None = Field(
        description="The length of the audio in seconds; null where the upstream gave none.", examples=[11.2]
    )
    model_name: str | None = Field(
        description="The upstream's internal name of the model that made the clip; null where it gave none.",
        examples=["chirp-fenix"],
    )
    image_url: str | None = Field(
        description="The upstream's URL of the cover image, which expires; null where there is none.",
        examples=["https://cdn.example/covers/8551662c.jpeg"],
    )
    upstream_audio_url: str | None = Field(
        description="The upstream's URL of the audio, which expires, often within a day; null where it gave none.",
        examples=["https://cdn.example/audio/8551662c.mp3"],
    )
    audio_url: str | None = Field(
        description="A signed link to this service's copy of the audio, which works without a key for a limited time"
        " (24 hours by default; read the task again for a new one). It is there as soon as the upstream has the audio:"
        " fetched before the copy exists, it waits for it up to 10 seconds, and then answers 409 with `Retry-After`."
        " Null only if no copy could be made and the upstream no longer has the audio.",
        examples=[
            f"https://sounds.example/v1/tasks/{EXAMPLE_TASK_ID}/clips/0/audio?expires=1769932800&signature=kq3vB1fGZt8"
        ],
    )
    content_type: str | None = Field(
        description="The media type of the copy, found from its bytes; null until the copy exists.",
        examples=["audio/mpeg"],
    )
    size: int | None = Field(description="The size of the copy in bytes; null until it exists.", examples=[181_248])
    sha256: str | None = Field(
        description="The SHA-256 of the copy in 64 hexadecimal digits; null until the copy exists.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    archived_at: datetime | None = Field(
        description="When the copy was stored; null until then.", examples=["2026-01-31T08:00:45Z"]
    )
    lyrics: list[LyricRead] | None = Field(
        description="The sung words in their order, an empty list where nothing is sung; null where `grab_lyrics` was"
        " not set, or as long as they are not known."
    )


class TaskRead(BaseModel):
    """A request for a sound, with what became of it."""

    id: str = Field(
        description="The task's id in 32 hexadecimal digits: a UUIDv7, or the UUID that you have chosen.",
        examples=[EXAMPLE_TASK_ID],
    )
    status: TaskStatus = Field(description="The task's current state.", examples=["succeeded"])
    version: int = Field(
        description="A counter that rises by 1 with every visible change of the task, from 1; the later of two copies"
        " of a task has the larger version.",
        examples=[5],
        json_schema_extra={"minimum": 1},
    )
    prompt: str = Field(description="The requested sound in words.", examples=["soft rain on a tin roof"])
    model: str = Field(description="The requested model, or the default of that time.", examples=["V5"])
    sound_loop: bool = Field(description="Whether a loop was requested.", examples=[False])
    sound_tempo: int | None = Field(
        description="The requested tempo in BPM, 1 to 300; null leaves it to the upstream.", examples=[90]
    )
    sound_key: str = Field(description="The requested musical key; `Any` leaves it to the upstream.", examples=["Am"])
    grab_lyrics: bool = Field(description="Whether the sung words were requested.", examples=[False])
    priority: Priority = Field(description="Its place among your own queued tasks.", examples=["normal"])
    metadata: dict[str, str] = Field(description="Your own labels of the task.", examples=[{"scene": "attic"}])
    webhook_url: str | None = Field(
        description="The URL that receives this task's final event; null for none.",
        examples=["https://example.com/hooks/sounds"],
    )
    upstream_task_id: str | None = Field(
        description="The upstream's id for the task; null until it is known.", examples=["2fac9f72a1c44f8e"]
    )
    resolved_by: ResolvedBy | None = Field(
        description="How this service learned of the task's end; null until then, and where the service or a caller"
        " ended the task.",
        examples=["callback"],
    )
    error: TaskError | None = Field(description="Why the task failed; null unless `status` is `failed`.")
    clips: list[ClipRead] = Field(description="The audio results so far, by `index`; empty until the first is ready.")
    charge: Charge = Field(description="What the task may have cost.", examples=["charged"])
    queue_position: Annotated[int, Field(ge=1, le=MAX_QUEUE_POSITION)] | None = Field(
        description="The task's place among all queued tasks, from 1 (next). It is counted up to 1000, which means that"
        " place or any later one. Null unless `status` is `queued`, and where it could not be counted in time.",
        examples=[3],
    )
    created_at: datetime = Field(description="When the task was stored.", examples=["2026-01-31T08:00:00Z"])
    submitted_at: datetime | None = Field(
        description="When the task was sent to the upstream; null until then.", examples=["2026-01-31T08:00:01Z"]
    )
    completed_at: datetime | None = Field(
        description="When the task succeeded, failed or was canceled; null until then.",
        examples=["2026-01-31T08:00:42Z"],
    )
    updated_at: datetime = Field(
        description="When the task last changed visibly, and got its current `version`.",
        examples=["2026-01-31T08:00:45Z"],
    )


class CanceledTask(TaskRead):
    """A canceled task."""

    charge_may_apply: bool = Field(
        description="Whether the upstream may still charge for the task, because it was sent before it was canceled.",
        examples=[True],
    )


class TaskPage(BaseModel):
    """One page of tasks, newest first."""

    items: list[TaskRead] = Field(description="The tasks of this page, newest first.")
    next_cursor: NextCursor


# What of a task, and of a clip, their representations are made of: attributes of the tables' classes.
_MADE_OF_OTHERS = frozenset({"metadata", "error", "clips", "queue_position", "audio_url"})
_SAME_IN_CLIPS = [name for name in ClipRead.model_fields if name not in _MADE_OF_OTHERS]
_SAME_IN_TASKS = [name for name in TaskRead.model_fields if name not in _MADE_OF_OTHERS]
CLIP_COLUMNS = (*_SAME_IN_CLIPS, "task_id", "given_up_at")
TASK_COLUMNS = (*_SAME_IN_TASKS, "labels", "error_code", "error_message", "upstream_code", "due_at", "api_key_id")


def read_clip(clip: Clip | SimpleNamespace, signed_urls: SignedUrls) -> ClipRead:
    """A clip, or its CLIP_COLUMNS, in its caller's shape; `audio_url` is null only where the audio is lost."""
    same = {name: getattr(clip, name) for name in _SAME_IN_CLIPS}
    return ClipRead(**same, audio_url=None if clip.given_up_at else signed_urls.audio(clip.task_id, clip.index))


def read_task(task: Task | SimpleNamespace, queue_positions: Mapping[str, int], signed_urls: SignedUrls) -> TaskRead:
    """
    A task, or its TASK_COLUMNS and `clips`, in its caller's shape.

    `queue_positions` counts from 1 for the tasks that still wait.
    """
    error = None
    if task.error_code is not None:
        error = TaskError(code=task.error_code, message=task.error_message, upstream_code=task.upstream_code)
    return TaskRead(
        **{name: getattr(task, name) for name in _SAME_IN_TASKS},
        metadata=task.labels,
        error=error,
        clips=[read_clip(clip, signed_urls) for clip in task.clips],
        queue_position=queue_positions.get(task.id),
    )
