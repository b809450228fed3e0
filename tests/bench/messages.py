"""What the upstream says in callbacks, where @ID@ stands for its id of the task."""

from __future__ import annotations

import json

from tests.support.settings import UNREACHABLE

KINDS = ("text", "first", "complete")
PLACE = "@ID@"


def callback_body(kind: str, audio_host: str = UNREACHABLE) -> str:
    """One of a task's three callbacks, with two clips, of which `first` has the audio of one."""
    ready = {"text": 0, "first": 1, "complete": 2}[kind]
    clips = [_clip(index, audio_host, has_audio=index < ready) for index in range(2)]
    data = {"callbackType": kind, "task_id": PLACE, "data": clips}
    return json.dumps({"code": 200, "msg": "All generated successfully.", "data": data})


def _clip(index: int, host: str, *, has_audio: bool) -> dict[str, object]:
    name = f"{PLACE}-{index}"
    clip: dict[str, object] = {
        "id": name,
        "audio_url": f"{host}/audio/{name}.wav" if has_audio else "",
        "source_audio_url": f"{host}/audio/source/{name}.wav" if has_audio else "",
        "stream_audio_url": f"{host}/stream/{name}",
        "source_stream_audio_url": f"{host}/stream/{name}",
        "image_url": "",
        "prompt": "soft rain on a tin roof",
        "model_name": "chirp-crow",
        "title": "Soft Rain On A",
        "tags": "soft, rain",
        "createTime": "2026-01-01 00:00:00",
    }
    return {**clip, "duration": 30.1} if has_audio else clip
