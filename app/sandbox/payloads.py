"""The upstream's JSON bodies: envelope, record-info, lyrics and callbacks, with the malformations of faults."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from app.sandbox.faults import CODES, strip_tags
from app.sandbox.state import Clip, Task
from app.sandbox.timeline import STATUSES, Failure, PlannedCallback, Stage, has_audio

_Body = dict[str, Any]

_MODEL_NAMES = {"V5": "chirp-crow"}
_NEWEST_MODEL_NAME = "chirp-fenix"


def envelope(code: int, data: Any = None, message: str | None = None) -> dict[str, Any]:
    """The envelope of every response."""
    return {"code": code, "msg": message or ("success" if code == 200 else CODES[code]), "data": data}


def record_info(task: Task, status: str, failure: Failure | None = None, *, omit_audio: bool = False) -> dict[str, Any]:
    """The data of record-info. `omit_audio` makes the audio URLs null, whatever the status is."""
    order = task.order
    stage = _STAGE_BY_STATUS.get(status)
    items = None if stage is None else [_item(task, i, stage, fresh=True) for i in range(len(task.clips))]
    for item in items or []:
        item["audioUrl"] = None if omit_audio else item["audioUrl"] or None
        item["sourceAudioUrl"] = None if omit_audio else item["sourceAudioUrl"] or None
    param = {
        "callBackUrl": order.callback_url,
        "grabLyrics": order.lyrics,
        "model": order.model,
        "prompt": order.prompt,
        "soundKey": order.key,
        "soundLoop": order.loop,
        "soundTempo": order.tempo,
    }
    return {
        "taskId": task.id,
        "parentMusicId": "",
        "param": json.dumps(param),
        "response": None if items is None else {"taskId": task.id, "sunoData": items},
        "status": status,
        "type": _model_name(task),
        "operationType": "sounds",
        "errorCode": failure.code if failure else None,
        "errorMessage": failure.message if failure else None,
        "createTime": _millis(task.created_at),
    }


def callback_body(task: Task, step: PlannedCallback, failure: Failure | None) -> bytes:
    """The bytes that are POSTed for this callback."""
    body = _callback(task, step.kind, step.stage, failure)
    if "poll-shaped" in task.faults:
        body = _poll_shaped(task, step, failure)
    for fault, change in _BODY_FAULTS.items():
        if fault in task.faults:
            body = change(body, task)
    content = json.dumps(body, ensure_ascii=False).encode()
    return content[: len(content) // 2] if "malformed-callback" in task.faults else content


def lyrics(task: Task, clip: Clip) -> dict[str, Any]:
    """The prompt's words, spread evenly over the clip; empty unless the submit had grabLyrics."""
    words = strip_tags(task.order.prompt).split() if task.order.lyrics else []
    span = clip.sound.duration / max(1, len(words))
    aligned = [
        {
            "word": f"{word} ",
            "success": True,
            "startS": round(i * span, 3),
            "endS": round((i + 1) * span, 3),
            "palign": 0,
        }
        for i, word in enumerate(words)
    ]
    return {"alignedWords": aligned, "waveformData": [0, 0.5, 0.25], "hootCer": 0.38, "isStreamed": False}


def in_snake_case(body: dict[str, Any]) -> dict[str, Any]:
    """The same body with names in snake_case, except for `createTime` and `callbackType`, as upstream."""
    renamed: dict[str, Any] = _rename_keys(body, _to_snake_case)
    return renamed


_STAGE_BY_STATUS = {
    "TEXT_SUCCESS": Stage.text,
    "FIRST_SUCCESS": Stage.first,
    "SUCCESS": Stage.complete,
    "CALLBACK_EXCEPTION": Stage.complete,
}


def _item(task: Task, index: int, stage: Stage, *, fresh: bool = False) -> dict[str, Any]:
    clip, base = task.clips[index], task.base_url
    ready = has_audio(stage, index)
    extension = "mp3" if "audio-mislabelled" in task.faults else "wav"
    query = "?fresh=1" if fresh and clip.link_expired else ""
    prompt = strip_tags(task.order.prompt)
    item = {
        "id": clip.id,
        "audioUrl": f"{base}audio/{clip.id}.{extension}{query}" if ready else "",
        "sourceAudioUrl": f"{base}audio/source/{clip.id}.{extension}{query}" if ready else "",
        "streamAudioUrl": f"{base}stream/{clip.id}",
        "sourceStreamAudioUrl": f"{base}stream/{clip.id}",
        "imageUrl": f"{base}image/{clip.id}.png",
        "sourceImageUrl": f"{base}image/{clip.id}.png",
        "prompt": prompt,
        "modelName": _model_name(task),
        "title": " ".join(prompt.split()[:4]).title(),
        "tags": ", ".join(prompt.lower().split()[:2]),
        "createTime": _millis(task.created_at),
    }
    return {**item, "duration": clip.sound.duration} if ready else item


def _in_camel_case(body: dict[str, Any]) -> dict[str, Any]:
    """The same body with names in camelCase."""
    renamed: dict[str, Any] = _rename_keys(body, _to_camel_case)
    return renamed


def _rename_keys(value: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_rename_keys(item, rename) for item in value]
    if isinstance(value, dict):
        return {rename(name): _rename_keys(item, rename) for name, item in value.items()}
    return value


@cache
def _to_snake_case(name: str) -> str:
    return name if name in ("createTime", "callbackType") else re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name)


@cache
def _to_camel_case(name: str) -> str:
    return re.sub(r"_(\w)", lambda m: m[1].upper(), name)


def _model_name(task: Task) -> str:
    return _MODEL_NAMES.get(task.order.model, _NEWEST_MODEL_NAME)


def _millis(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp() * 1000)


def _callback(task: Task, kind: str, stage: Stage, failure: Failure | None) -> dict[str, Any]:
    """A callback's body. Unlike record-info it is in snake_case, except for createTime and callbackType."""
    if failure is not None and kind in ("error", "complete"):
        data = {"callbackType": kind, "task_id": task.id, "data": None}
        return {"code": failure.code, "msg": failure.message, "data": data}
    messages = {"text": "Text generated successfully.", "first": "First audio generated successfully."}
    items = [in_snake_case(_item(task, i, stage)) for i in range(len(task.clips))]
    for item in items:
        item["createTime"] = f"{task.created_at:%Y-%m-%d %H:%M:%S}"
    return {
        "code": 200,
        "msg": messages.get(kind, "All generated successfully."),
        "data": {"callbackType": kind, "task_id": task.id, "data": items},
    }


def _poll_shaped(task: Task, step: PlannedCallback, failure: Failure | None) -> _Body:
    if failure is not None and step.stage is Stage.complete:
        return envelope(200, record_info(task, failure.status, failure))
    return envelope(200, record_info(task, STATUSES[step.stage]))


def _with_data(**fields: Any) -> Callable[[_Body, Task], _Body]:
    return lambda body, _: {**body, "data": {**body["data"], **fields}}


def _upper_case_type(body: _Body, _: Task) -> _Body:
    return _change_field(body, "callbackType", str.upper)


def _wrong_id(body: _Body, _: Task) -> _Body:
    return _change_field(_change_field(body, "task_id", _reverse), "taskId", _reverse)


def _reverse(text: str) -> str:
    return text[::-1]


def _change_field(body: _Body, field: str, change: Callable[[str], str]) -> _Body:
    data = body["data"]
    return {**body, "data": {**data, field: change(data[field])}} if field in data else body


def _without_id(body: _Body, _: Task) -> _Body:
    return {**body, "data": {name: value for name, value in body["data"].items() if name not in ("task_id", "taskId")}}


def _top_level_id(body: _Body, task: Task) -> _Body:
    return {**_without_id(body, task), "task_id": task.id}


def _digit_times(body: _Body, task: Task) -> _Body:
    millis = str(int(task.created_at.timestamp() * 1000))
    items = [{**item, "createTime": millis} for item in body["data"].get("data") or []]
    return {**body, "data": {**body["data"], "data": items}} if items else body


_BODY_FAULTS: Mapping[str, Callable[[_Body, Task], _Body]] = {
    "null-data": _with_data(data=None),
    "empty-data": _with_data(data=[]),
    "unknown-type": _with_data(callbackType="progress"),
    "upper-case-type": _upper_case_type,
    "digit-times": _digit_times,
    "missing-id": _without_id,
    "top-level-id": _top_level_id,
    "wrong-id": _wrong_id,
    "camel-case": lambda body, _: _in_camel_case(body),
    "callback-string-code": lambda body, _: {**body, "code": str(body["code"])},
}
"""The changes that faults make to a callback's body, in the order of their application, so that they combine."""
