"""The vendor's shapes: its field names, envelope, codes and status words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.tasks.schemas import TaskRead
from app.web import WHOLE, Text
from app.web.fields import EXAMPLE_TASK_ID

OK = 200
MAX_PROMPT_LENGTH = 500

# The vendor's word for each status; while `generating` it depends on the clips too.
STATUS_WORDS: Mapping[TaskStatus, str] = {
    TaskStatus.queued: "PENDING",
    TaskStatus.submitting: "PENDING",
    TaskStatus.unconfirmed: "PENDING",
    TaskStatus.generating: "TEXT_SUCCESS",
    TaskStatus.succeeded: "SUCCESS",
    TaskStatus.failed: "GENERATE_AUDIO_FAILED",
    TaskStatus.canceled: "GENERATE_AUDIO_FAILED",
}
FAILURE_WORDS: Mapping[ErrorCode, str] = {
    ErrorCode.content_rejected: "SENSITIVE_WORD_ERROR",
    ErrorCode.invalid_request: "CREATE_TASK_FAILED",
    ErrorCode.insufficient_credits: "CREATE_TASK_FAILED",
    ErrorCode.outcome_unknown: "CREATE_TASK_FAILED",
}
# The codes of failures for which the upstream gave none; all others are 500.
FAILURE_CODES: Mapping[ErrorCode, int] = {ErrorCode.content_rejected: 400, ErrorCode.insufficient_credits: 429}
CANCELED = "The task was canceled."
EXAMPLE_AUDIO_URL = "https://cdn.example/audio/8551662c.mp3"
EXAMPLE_IMAGE_URL = "https://cdn.example/covers/8551662c.jpeg"


class SoundsRequest(BaseModel):
    """A request for a sound in the vendor's shape. Unknown fields are ignored, as the vendor ignores them."""

    model_config = ConfigDict(strict=True)

    prompt: Text = Field(
        description="What the sound should be, in words: 1 to 500 characters.", examples=["soft rain on a tin roof"]
    )
    model: Text = Field(description="The model to use, one of those of `POST /v1/tasks`.", examples=["V5"])
    # Some clients send null for what they leave open.
    sound_loop: bool | None = Field(
        default=None, alias="soundLoop", description="Whether the sound should loop; null means false.", examples=[True]
    )
    sound_tempo: Annotated[int, WHOLE] | None = Field(
        default=None,
        alias="soundTempo",
        description="The tempo in BPM, 1 to 300; null lets the vendor choose.",
        examples=[90],
    )
    sound_key: Text | None = Field(
        default=None,
        alias="soundKey",
        description="The musical key, one of those of `POST /v1/tasks`; null means `Any`.",
        examples=["Am"],
    )
    grab_lyrics: bool | None = Field(
        default=None,
        alias="grabLyrics",
        description="Whether to fetch the sung words; null means false.",
        examples=[False],
    )
    callback_url: Text | None = Field(
        default=None,
        alias="callBackUrl",
        description="An HTTP or HTTPS URL that receives the vendor's callbacks; null or empty for none. It must not"
        " lead to a private address.",
        examples=["https://example.com/callbacks"],
    )


class TaskId(BaseModel):
    """The task that was created."""

    taskId: str = Field(  # noqa: N815 - the vendor's name
        description="The id of the task at this service.", examples=[EXAMPLE_TASK_ID]
    )


class VendorModel(BaseModel):
    """An object in the vendor's camelCase."""

    model_config = ConfigDict(alias_generator=to_camel)


class RecordClip(VendorModel):
    """One audio result in the vendor's shape. The URLs are this service's once it has stored the audio."""

    id: str = Field(description="The vendor's id for the clip.", examples=["8551662c-0f3a-4c55"])
    audio_url: str = Field(
        description="The URL of the audio; empty if there is none yet.", examples=[EXAMPLE_AUDIO_URL]
    )
    source_audio_url: str = Field(description="The same as `audioUrl`.", examples=[EXAMPLE_AUDIO_URL])
    stream_audio_url: str = Field(description="The same as `audioUrl`.", examples=[EXAMPLE_AUDIO_URL])
    source_stream_audio_url: str = Field(description="The same as `audioUrl`.", examples=[EXAMPLE_AUDIO_URL])
    image_url: str = Field(
        description="The URL of the cover image; empty if there is none.", examples=[EXAMPLE_IMAGE_URL]
    )
    source_image_url: str = Field(description="The same as `imageUrl`.", examples=[EXAMPLE_IMAGE_URL])
    prompt: str = Field(description="The requested sound in words.", examples=["soft rain on a tin roof"])
    model_name: str = Field(description="The vendor's internal name of the model.", examples=["chirp-fenix"])
    title: str = Field(description="The vendor's title; empty if it gave none.", examples=["Attic Rain"])
    tags: str = Field(description="The vendor's description of the style; may be empty.", examples=["ambient, rain"])
    create_time: int = Field(description="When the clip was made, in Unix milliseconds.", examples=[1769846440000])
    duration: float | None = Field(
        description="The length of the audio in seconds; null if the vendor gave none.", examples=[11.2]
    )


class RecordResponse(VendorModel):
    """The results of a task in the vendor's shape."""

    task_id: str = Field(description="The id of the task at this service.", examples=[EXAMPLE_TASK_ID])
    suno_data: list[RecordClip] = Field(description="The audio results so far; empty until the first is ready.")


class RecordInfo(VendorModel):
    """A task in the vendor's shape."""

    task_id: str = Field(description="The id of the task at this service.", examples=[EXAMPLE_TASK_ID])
    parent_music_id: str = Field(description="Always an empty string.", examples=[""])
    param: str = Field(
        description="The parameters of the request as a string of JSON.",
        examples=['{"prompt": "soft rain on a tin roof", "model": "V5"}'],
    )
    response: RecordResponse = Field(description="The results so far.")
    status: str = Field(
        description="`PENDING`, `TEXT_SUCCESS`, `FIRST_SUCCESS`, `SUCCESS`, `CREATE_TASK_FAILED`,"
        " `GENERATE_AUDIO_FAILED` or `SENSITIVE_WORD_ERROR`.",
        examples=["SUCCESS"],
    )
    type: str = Field(description="The requested model.", examples=["V5"])
    operation_type: str = Field(description="Always the word `sounds`.", examples=["sounds"])
    error_code: int | None = Field(description="The vendor's error code; null unless the task failed.", examples=[400])
    error_message: str | None = Field(
        description="Why the task failed; null unless it did.",
        examples=["The prompt contains words that are not allowed."],
    )
    create_time: int = Field(description="When the task was created, in Unix milliseconds.", examples=[1769846400000])


class Answer(BaseModel):
    """The vendor's envelope around every response. Errors have HTTP status 200 too, and `data` is then null."""

    code: int = Field(
        default=OK,
        description="The vendor's code: 200 for success, else an error such as 400, 401, 404, 405 (rate limit) or 413.",
        examples=[200],
    )
    msg: str = Field(default="success", description="`success`, or what went wrong.", examples=["success"])


class SoundsAnswer(Answer):
    """The vendor's response to a request for a sound."""

    data: TaskId | None = Field(description="The task that was created; null if there was an error.")


class RecordAnswer(Answer):
    """The vendor's response to a request for a task."""

    data: RecordInfo | None = Field(description="The task; null if there was an error.")


class CreditAnswer(Answer):
    """The vendor's response to a request for the account's credits."""

    data: float | None = Field(
        description="The credits left on the upstream account, with fractions; null if there was an error.",
        examples=[1025.6],
    )


def record_info(task: Task, read: TaskRead) -> dict[str, Any]:
    """Return a task in the shape of the vendor's record-info."""
    return {
        "taskId": task.id,
        "parentMusicId": "",
        "param": json.dumps(_param(task)),
        "response": {"taskId": task.id, "sunoData": [_camel_clip(clip) for clip in _clips(task, read)]},
        "status": _status_word(task),
        "type": task.model,
        "operationType": "sounds",
        "errorCode": _error_code(task),
        "errorMessage": _error_message(task),
        "createTime": _milliseconds(task.created_at),
    }


def callback(task: Task, read: TaskRead, stage: str) -> dict[str, Any]:
    """Return the body of the vendor's callback about a task. `stage` is `first`, `complete` or `error`."""
    if stage == "error":
        data: dict[str, Any] = {"callbackType": "error", "task_id": task.id, "data": None}
        return {"code": _error_code(task) or 500, "msg": _error_message(task) or "Generation failed.", "data": data}
    message = "All generated successfully." if stage == "complete" else "First clip generated successfully."
    data = {"callbackType": stage, "task_id": task.id, "data": _clips(task, read)}
    return {"code": OK, "msg": message, "data": data}


def _clips(task: Task, read: TaskRead) -> list[dict[str, Any]]:
    """Return the clips in the snake_case of callbacks. The audio URL is ours once the audio is archived."""
    clips = []
    for row, clip in zip(task.clips, read.clips, strict=True):
        audio_url = (clip.audio_url if row.archived_at else clip.upstream_audio_url) or clip.audio_url or ""
        clips.append(
            {
                "id": clip.upstream_clip_id or row.id,
                "audio_url": audio_url,
                "source_audio_url": audio_url,
                "stream_audio_url": audio_url,
                "source_stream_audio_url": audio_url,
                "image_url": clip.image_url or "",
                "source_image_url": clip.image_url or "",
                "prompt": task.prompt,
                "model_name": clip.model_name or task.model,
                "title": clip.title or "",
                "tags": clip.tags or "",
                "createTime": _milliseconds(row.created_at),
                "duration": clip.duration,
            }
        )
    return clips


def _camel_clip(clip: Mapping[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in clip.items()}


def _param(task: Task) -> dict[str, Any]:
    return {
        "prompt": task.prompt,
        "model": task.model,
        "soundLoop": task.sound_loop,
        "soundTempo": task.sound_tempo,
        "soundKey": task.sound_key,
        "grabLyrics": task.grab_lyrics,
    }


def _status_word(task: Task) -> str:
    if task.status is TaskStatus.generating and task.clips:
        return "FIRST_SUCCESS"
    if task.error_code is not None:
        return FAILURE_WORDS.get(task.error_code, STATUS_WORDS[task.status])
    return STATUS_WORDS[task.status]


def _error_code(task: Task) -> int | None:
    if task.status is TaskStatus.canceled:
        return 500
    if task.error_code is None:
        return None
    return task.upstream_code or FAILURE_CODES.get(task.error_code, 500)


def _error_message(task: Task) -> str | None:
    return CANCELED if task.status is TaskStatus.canceled else task.error_message


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
