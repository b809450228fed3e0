"""Faults of record-info and of the lyrics call."""

import json
from typing import Any

import httpx
import pytest

from tests.sandbox.running import create_task, poll, poll_until_final, running_sandbox

RECORD_INFO = "/api/v1/generate/record-info"


async def task_with(client: httpx.AsyncClient, fault: str) -> str:
    """A task with this fault that sends no callbacks, so that only polls show its status."""
    return await create_task(client, f"rain [fault: drop-callbacks, {fault}]")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("poll-500", 500, None),
        ("poll-code-500", 200, 500),
        ("poll-throttle", 200, 405),
        ("poll-record-null", 200, 422),
        ("poll-null", 200, 200),
        ("poll-html", 403, None),
        ("poll-empty", 200, None),
    ],
)
async def test_poll_fault_ends_after_its_count(
    client: httpx.AsyncClient, fault: str, status: int, code: int | None
) -> None:
    task_id = await task_with(client, f"{fault}=2")
    answers = [await client.get(RECORD_INFO, params={"taskId": task_id}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [status, status, 200]
    for answer in answers[:2]:
        assert (answer.json() if code else {"code": None, "data": None}) | {"msg": ""} == {
            "code": code,
            "msg": "",
            "data": None,
        }
    assert answers[2].json()["data"]["taskId"] == task_id


async def test_poll_can_be_reset_or_left_hanging(client: httpx.AsyncClient) -> None:
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await poll(client, await task_with(client, "poll-reset"))
    with pytest.raises(httpx.ReadTimeout):
        await poll(client, await task_with(client, "poll-hang"), within=0.2)
    with pytest.raises(httpx.ReadTimeout):
        await poll(client, await task_with(client, "poll-slow=30"), within=0.2)


async def test_poll_reports_success_without_links(client: httpx.AsyncClient) -> None:
    task_id = await task_with(client, "poll-lies=1")
    first = await poll_until_final(client, task_id)
    second = await poll_until_final(client, task_id)

    assert first["status"] == second["status"] == "SUCCESS"
    assert [clip["audioUrl"] for clip in first["response"]["sunoData"]] == [None, None]
    assert all(clip["audioUrl"] for clip in second["response"]["sunoData"])


async def test_stale_polls_stay_pending() -> None:
    async with running_sandbox(delay=0) as client:
        task_id = await task_with(client, "poll-stale=3")
        statuses = [(await poll(client, task_id))["data"]["status"] for _ in range(4)]

    assert statuses == ["PENDING"] * 3 + ["SUCCESS"]


async def test_complete_task_is_reported_as_callback_exception(client: httpx.AsyncClient) -> None:
    shown = await poll_until_final(client, await task_with(client, "poll-callback-exception"))
    task_id = await task_with(client, "poll-callback-exception-bare=1")
    bare, later = await poll_until_final(client, task_id), await poll_until_final(client, task_id)

    assert [data["status"] for data in (shown, bare, later)] == [
        "CALLBACK_EXCEPTION",
        "CALLBACK_EXCEPTION",
        "SUCCESS",
    ]
    assert [bool(_first(data)["audioUrl"]) for data in (shown, bare, later)] == [True, False, True]


async def test_polls_with_other_names_types_and_statuses(client: httpx.AsyncClient) -> None:
    snake = await poll_until_final(client, await task_with(client, "poll-snake-case"))
    text = await poll_until_final(client, await task_with(client, "poll-response-text"))
    async with running_sandbox(delay=60) as slow:
        running = (await poll(slow, await task_with(slow, "poll-odd-status")))["data"]
    failed = await poll_until_final(client, await task_with(client, "poll-odd-status, failed"), status="FAILED")

    assert snake["response"]["suno_data"][0]["audio_url"]
    assert json.loads(text["response"])["sunoData"][0]["audioUrl"]
    assert running["status"] == "GENERATING"
    assert failed["errorCode"] == 500


async def test_lyrics_can_be_null_or_fail(client: httpx.AsyncClient) -> None:
    answers = []
    for fault in ("lyrics-null", "lyrics-500"):
        task_id = await task_with(client, fault)
        clip = _first(await poll_until_final(client, task_id))
        body = {"taskId": task_id, "audioId": clip["id"]}
        answers.append((await client.post("/api/v1/generate/get-timestamped-lyrics", json=body)).json())

    assert answers[0]["data"]["alignedWords"] is None
    assert answers[1]["code"] == 500


def _first(data: Any) -> Any:
    return data["response"]["sunoData"][0]
