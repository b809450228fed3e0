"""The stand-in upstream does what the upstream does when all goes well."""

import io
from typing import Any

from tinytag import TinyTag

from .running import Caller, created, eventually, finished, poll, sandboxed, submit


async def test_task_tells_text_first_complete_in_order(caller: Caller) -> None:
    async with sandboxed() as client:
        task_id = await created(client, callBackUrl=caller.url)
        await eventually(lambda: len(caller.bodies) == 3)
        await finished(client, task_id)

    assert caller.types == ["text", "first", "complete"]
    assert {message["data"]["task_id"] for message in caller.messages} == {task_id}
    assert {message["code"] for message in caller.messages} == {200}


async def test_clips_become_audible_one_after_the_other(caller: Caller) -> None:
    async with sandboxed() as client:
        await created(client, callBackUrl=caller.url)
        await eventually(lambda: len(caller.bodies) == 3)

    urls = [[clip["audio_url"] != "" for clip in message["data"]["data"]] for message in caller.messages]
    assert urls == [[False, False], [True, False], [True, True]]
    timed = [["duration" in clip for clip in message["data"]["data"]] for message in caller.messages]
    assert timed == urls


async def test_record_info_of_a_finished_task_has_working_links() -> None:
    async with sandboxed() as client:
        task_id = await created(client, "soft rain on a tin roof", soundTempo=120, soundKey="F#m", soundLoop=True)
        data = await finished(client, task_id)
        clips = data["response"]["sunoData"]
        files = [await client.get(clip["audioUrl"]) for clip in clips]
        covers = [await client.get(clip["imageUrl"]) for clip in clips]
        stream = await client.get(clips[0]["streamAudioUrl"])

    assert (data["status"], data["operationType"], data["taskId"]) == ("SUCCESS", "sounds", task_id)
    for clip, file in zip(clips, files, strict=True):
        assert file.content[:4] == b"RIFF"
        assert int(file.headers["content-length"]) == len(file.content)
        assert _seconds(file.content) == clip["duration"]
    assert files[0].content != files[1].content
    assert all(cover.content.startswith(b"\x89PNG") for cover in covers)
    assert stream.content == b""


async def test_param_echoes_the_submit_as_text() -> None:
    async with sandboxed() as client:
        task_id = await created(client, soundTempo=90)
        param = (await poll(client, task_id))["data"]["param"]

    assert '"callBackUrl": "http://soundpost.invalid/callbacks/t1/secret"' in param
    assert '"soundTempo": 90' in param


async def test_each_task_costs_two_and_a_half_credits() -> None:
    async with sandboxed(credits=6.1) as client:
        answers = [(await submit(client)).json()["code"] for _ in range(3)]
        credit: Any = (await client.get("/api/v1/generate/credit")).json()

    assert answers == [200, 200, 429]
    assert round(credit["data"], 6) == 1.1


def _seconds(content: bytes) -> float:
    duration = TinyTag.get("sound.wav", file_obj=io.BytesIO(content)).duration
    assert duration is not None
    return round(duration, 2)
