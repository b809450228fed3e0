"""The vendor's shapes: its field names, envelope, codes and status words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.tasks.schemas import TaskRead
from app.web import WHOLE, Text

OK = 200
MAX_PROMPT_LENGTH = 500

# Which of the vendor's words a task's state is; while generating, the clips tell.
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
# What stands for a failure of which the upstream gave no code.
FAILURE_CODES: Mapping[ErrorCode, int] = {ErrorCode.content_rejected: 400, ErrorCode.insufficient_credits: 429}
CANCELED = "The task was canceled."


class SoundsRequest(BaseModel):
    """An order as the vendor takes it; fields that it does not know are ignored here too."""

    model_config = ConfigDict(strict=True)

    prompt: Text
    model: Text
    # Some clients send what they leave open as null.
    sound_loop: bool | None = Field(None, alias="soundLoop")
    sound_tempo: Annotated[int, WHOLE] | None = Field(None, alias="soundTempo")
    sound_key: Text | None = Field(None, alias="soundKey")
    grab_lyrics: bool | None = Field(None, alias="grabLyrics")
    callback_url: Text | None = Field(None, alias="callBackUrl")


class TaskId(BaseModel):
    """Which task was made."""

    taskId: str  # noqa: N815 - the vendor's name


class Answer(BaseModel):
    """What every answer of the vendor's is wrapped in: errors too, with the code of the failure and no data."""

    code: int = OK
    msg: str = "success"


class SoundsAnswer(Answer):
    """The answer to an order."""

    data: TaskId | None


class RecordAnswer(Answer):
    """The answer to a question about a task, in the vendor's field names."""

    data: dict[str, Any] | None


class CreditAnswer(Answer):
    """The answer to a question about the account."""

    data: float | None


def record_info(task: Task, read: TaskRead) -> dict[str, Any]:
    """A task as the vendor's record-info tells it."""
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
    """A task as the vendor's callback tells it: `first`, `complete` or `error`."""
    if stage == "error":
        data: dict[str, Any] = {"callbackType": "error", "task_id": task.id, "data": None}
        return {"code": _error_code(task) or 500, "msg": _error_message(task) or "Generation failed.", "data": data}
    message = "All generated successfully." if stage == "complete" else "First clip generated successfully."
    data = {"callbackType": stage, "task_id": task.id, "data": _clips(task, read)}
    return {"code": OK, "msg": message, "data": data}


def _clips(task: Task, read: TaskRead) -> list[dict[str, Any]]:
    """The clips in the callback's snake_case; their audio is ours once we have it."""
    clips = []
    for kept, clip in zip(task.clips, read.clips, strict=True):
        audio_url = clip.audio_url or clip.upstream_audio_url or ""
        clips.append(
            {
                "id": clip.upstream_clip_id or kept.id,
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
                "createTime": _milliseconds(kept.created_at),
                "duration": clip.duration,
            }
        )
    return clips


def _camel_clip(clip: Mapping[str, Any]) -> dict[str, Any]:
    return {camel(name): value for name, value in clip.items()}


def camel(name: str) -> str:
    """A name as the vendor writes it outside of callbacks."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


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
