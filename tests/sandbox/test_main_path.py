"""Without faults, the sandbox behaves like the upstream."""

import base64
import hmac
import io
import json
from typing import Any

import httpx
from tinytag import TinyTag

from app.sandbox.callbacks import signature_headers
from tests.sandbox.running import (
    CallbackReceiver,
    codes,
    create_task,
    poll,
    poll_until_final,
    running_sandbox,
    serving_receiver,
    submit,
    tasks_for,
    unreachable_url,
)
from tests.support.wait import eventually

LYRICS = "/api/v1/generate/get-timestamped-lyrics"


async def test_task_sends_text_first_complete_in_order(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    task_id = await create_task(client, callBackUrl=receiver.url)
    await eventually(lambda: len(receiver.bodies) == 3)

    assert receiver.types == ["text", "first", "complete"]
    assert {message["data"]["task_id"] for message in receiver.messages} == {task_id}
    assert {message["code"] for message in receiver.messages} == {200}


async def test_clips_get_their_audio_one_after_the_other(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    await create_task(client, callBackUrl=receiver.url)
    await eventually(lambda: len(receiver.bodies) == 3)

    urls = [[clip["audio_url"] != "" for clip in message["data"]["data"]] for message in receiver.messages]
    assert urls == [[False, False], [True, False], [True, True]]
    timed = [["duration" in clip for clip in message["data"]["data"]] for message in receiver.messages]
    assert timed == urls


async def test_record_info_of_a_finished_task_has_working_links(client: httpx.AsyncClient) -> None:
    task_id = await create_task(client, "soft rain on a tin roof", soundTempo=120, soundKey="F#m", soundLoop=True)
    data = await poll_until_final(client, task_id)
    clips = data["response"]["sunoData"]
    files = [await client.get(clip["audioUrl"]) for clip in clips]
    covers = [await client.get(clip["imageUrl"]) for clip in clips]
    stream = await client.get(clips[0]["streamAudioUrl"])

    assert (data["status"], data["operationType"], data["taskId"]) == ("SUCCESS", "sounds", task_id)
    for clip, file in zip(clips, files, strict=True):
        assert file.content[:4] == b"RIFF"
        assert file.headers["content-type"] == "audio/wav"
        assert int(file.headers["content-length"]) == len(file.content)
        assert _seconds(file.content) == clip["duration"]
    assert files[0].content != files[1].content
    assert all(cover.content.startswith(b"\x89PNG") for cover in covers)
    assert stream.content == b""


async def test_audio_is_404_before_its_stage() -> None:
    async with running_sandbox(delay=30) as client:
        task_id = await create_task(client)
        task = (await client.get("/tasks")).json()[0]
        early = await client.get(f"/audio/{task['clips'][0]}.wav")
        data = (await poll(client, task_id))["data"]

    assert early.status_code == 404
    assert (data["status"], data["response"]) == ("PENDING", None)


async def test_param_echoes_the_submit_as_json_text(client: httpx.AsyncClient) -> None:
    url = unreachable_url()
    task_id = await create_task(client, soundTempo=90, callBackUrl=url)
    param = json.loads((await poll(client, task_id))["data"]["param"])

    assert (param["callBackUrl"], param["soundTempo"], param["soundKey"]) == (url, 90, "Any")


async def test_callback_is_retried_until_it_gets_http_200(client: httpx.AsyncClient) -> None:
    async with serving_receiver(500, 204, 200) as receiver:
        await create_task(client, "[fault: only-complete]", callBackUrl=receiver.url)
        await eventually(lambda: len(receiver.bodies) == 3)
        [task] = await tasks_for(client, receiver.url)

    assert [attempt["status"] for attempt in task["callbacks"]][:2] == [500, 204]
    assert len(set(receiver.bodies)) == 1


async def test_task_with_undeliverable_callbacks_polls_as_callback_exception() -> None:
    async with running_sandbox(callback_retry_delays=(0.01, 0.01, 0.01)) as client:
        url = unreachable_url()
        task_id = await create_task(client, callBackUrl=url)
        data = await poll_until_final(client, task_id, status="CALLBACK_EXCEPTION")
        [task] = await tasks_for(client, url)

    assert all(clip["audioUrl"] for clip in data["response"]["sunoData"])
    assert [attempt["attempt"] for attempt in task["callbacks"] if attempt["type"] == "complete"] == [1, 2, 3, 4]
    assert task["delivered"] == []


async def test_callbacks_are_signed_if_a_key_is_set() -> None:
    async with running_sandbox(callback_hmac_key="test-key") as client, serving_receiver() as receiver:
        task_id = await create_task(client, callBackUrl=receiver.url)
        await eventually(lambda: bool(receiver.headers))

    headers = receiver.headers[0]
    message = f"{task_id}.{headers['x-webhook-timestamp']}".encode()
    expected = base64.b64encode(hmac.digest(b"test-key", message, "sha256")).decode()
    assert headers["x-webhook-signature"] == expected


def test_signature_matches_the_test_vector() -> None:
    headers = signature_headers("test-key", "2fac9f72", 1_700_000_000)

    assert headers["X-Webhook-Signature"] == "WtzV65swf0LZzsInJvP0mLo1FSny6bKpqDqus37Q1RM="


async def test_lyrics_are_the_words_of_the_prompt_if_requested(client: httpx.AsyncClient) -> None:
    words = {}
    for requested in (True, False):
        task_id = await create_task(client, "rain on tin", grabLyrics=requested)
        clip = (await poll_until_final(client, task_id))["response"]["sunoData"][0]
        answer = await client.post(LYRICS, json={"taskId": task_id, "audioId": clip["id"]})
        words[requested] = answer.json()["data"]["alignedWords"]
        assert codes(await client.post(LYRICS, json={"taskId": task_id, "audioId": "none"})) == [400]

    assert [word["word"] for word in words[True]] == ["rain ", "on ", "tin "]
    assert all(word["startS"] < word["endS"] for word in words[True])
    assert words[False] == []


async def test_each_task_costs_two_and_a_half_credits() -> None:
    async with running_sandbox(credits=6.1) as client:
        answers = [(await submit(client)).json()["code"] for _ in range(3)]
        credit: Any = (await client.get("/api/v1/generate/credit")).json()

    assert answers == [200, 200, 429]
    assert round(credit["data"], 6) == 1.1


def _seconds(content: bytes) -> float:
    duration = TinyTag.get("sound.wav", file_obj=io.BytesIO(content)).duration
    assert duration is not None
    return round(duration, 2)
