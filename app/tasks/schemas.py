"""The shapes in which callers order sounds and see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from app.enums import CallbackOutcome, Charge, ErrorCode, EventType, ResolvedBy, TaskStatus
from app.models import Clip, Task
from app.signed_urls import SignedUrls
from app.web import WHOLE, Moment, StrictModel, Text
from app.web.pagination import Cursor, Limit

SoundKey = Literal[
    "Any",
    "Cm", "C#m", "Dm", "D#m", "Em", "Fm", "F#m", "Gm", "G#m", "Am", "A#m", "Bm",
    "C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B",
]  # fmt: skip
Prompt = Annotated[Text, StringConstraints(min_length=1, max_length=500)]
WebhookUrl = Annotated[str, StringConstraints(max_length=2048), Field(json_schema_extra={"format": "uri"})]
Label = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
LabelValue = Annotated[Text, StringConstraints(max_length=512)]


def _bound_names(schema: dict[str, Any]) -> None:
    """Say that other names are refused; pydantic's own words admit them, with values of any kind."""
    schema["propertyNames"]["pattern"], schema["additionalProperties"] = schema.pop("patternProperties").popitem()


class TaskCreate(StrictModel):
    """An order for one sound."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "soft rain on a tin roof", "sound_tempo": 90, "sound_key": "Am"}]}
    )

    prompt: Prompt
    model: Annotated[Text, StringConstraints(min_length=1, max_length=64)] | None = None
    sound_loop: bool = False
    sound_tempo: Annotated[int, Field(ge=1, le=300), WHOLE] | None = None
    sound_key: SoundKey = "Any"
    grab_lyrics: bool = False
    webhook_url: WebhookUrl | None = None
    metadata: Annotated[
        dict[Label, LabelValue], Field(max_length=16, default_factory=dict, json_schema_extra=_bound_names)
    ]


class TaskFilters(BaseModel):
    """Which tasks to list, and from where."""

    status: TaskStatus | SkipJsonSchema[None] = None
    model: Text | SkipJsonSchema[None] = None
    created_after: Moment | SkipJsonSchema[None] = None
    created_before: Moment | SkipJsonSchema[None] = None
    limit: Limit = 50
    cursor: Cursor = None


class TaskError(BaseModel):
    """Why a task failed, in our word and the upstream's."""

    code: ErrorCode
    message: str | None
    upstream_code: int | None


class LyricRead(BaseModel):
    """One word; `start` and `end` in seconds from the beginning of the clip."""

    word: str
    start: float
    end: float


class ClipRead(BaseModel):
    """One audio result. `audio_url` works without a key for a while, and is null until our copy exists."""

    index: int
    upstream_clip_id: str | None
    title: str | None
    tags: str | None
    duration: float | None
    model_name: str | None
    image_url: str | None
    upstream_audio_url: str | None
    audio_url: str | None
    content_type: str | None
    size: int | None
    sha256: str | None
    archived_at: datetime | None
    lyrics: list[LyricRead] | None


class TaskRead(BaseModel):
    """A task as its caller sees it."""

    id: str
    status: TaskStatus
    version: int
    prompt: str
    model: str
    sound_loop: bool
    sound_tempo: int | None
    sound_key: str
    grab_lyrics: bool
    metadata: dict[str, str]
    webhook_url: str | None
    upstream_task_id: str | None
    resolved_by: ResolvedBy | None
    error: TaskError | None
    clips: list[ClipRead]
    charge: Charge
    queue_position: int | None
    created_at: datetime
    submitted_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime


class CanceledTask(TaskRead):
    """A task that was stopped, and whether the upstream may charge it all the same."""

    charge_may_apply: bool


class TaskPage(BaseModel):
    """Some tasks, newest first, and where the next ones begin."""

    items: list[TaskRead]
    next_cursor: str | None


class EventRead(BaseModel):
    """A numbered fact about a task; `data` holds what it changed."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    type: EventType
    task_id: str
    version: int
    created_at: datetime
    data: dict[str, Any]


class EventPage(BaseModel):
    """A task's history, oldest first."""

    items: list[EventRead]
    next_cursor: str | None


class CallbackRead(BaseModel):
    """A message from the upstream as it was received, less its secrets; one of the two bodies is null."""

    id: str
    received_at: datetime
    headers: dict[str, str]
    body: str | None
    body_base64: str | None
    outcome: CallbackOutcome


class CallbackPage(BaseModel):
    """What the upstream told us of a task, oldest first."""

    items: list[CallbackRead]
    next_cursor: str | None


class Usage(BaseModel):
    """Tasks created, POSTs made for them, and how many of the tasks were charged, refunded, or possibly charged."""

    tasks: int
    posts: int
    charged: int
    refunded: int
    possible: int


def read_clip(clip: Clip, signed_urls: SignedUrls) -> ClipRead:
    """A clip in its caller's shape; `audio_url` is null until our copy exists."""
    same = {name: getattr(clip, name) for name in ClipRead.model_fields if name != "audio_url"}
    return ClipRead(**same, audio_url=signed_urls.audio(clip.task_id, clip.index) if clip.archived_at else None)


def read_task(task: Task, queue_positions: Mapping[str, int], signed_urls: SignedUrls) -> TaskRead:
    """A task in its caller's shape; `queue_positions` counts from 1 for the tasks that still wait."""
    error = None
    if task.error_code is not None:
        error = TaskError(code=task.error_code, message=task.error_message, upstream_code=task.upstream_code)
    apart = ("metadata", "error", "clips", "queue_position")
    return TaskRead(
        **{name: getattr(task, name) for name in TaskRead.model_fields if name not in apart},
        metadata=task.labels,
        error=error,
        clips=[read_clip(clip, signed_urls) for clip in task.clips],
        queue_position=queue_positions.get(task.id),
    )
