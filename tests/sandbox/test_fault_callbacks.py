"""Faults of callbacks: which are sent, in which order, and with which body."""

import json
from typing import Any

import httpx
import pytest

from tests.sandbox.running import CallbackReceiver, create_task, poll_until_final, tasks_for
from tests.support.wait import eventually


@pytest.mark.parametrize(
    ("fault", "types"),
    [
        ("only-complete", ["complete"]),
        ("repeat-callbacks", ["text", "text", "first", "first", "complete", "complete"]),
        ("only-complete, repeat-callbacks=4", ["complete"] * 4),
        ("reorder-callbacks", ["complete", "first", "text"]),
        ("delay-callbacks=0.1", ["text", "first", "complete"]),
        ("second-callback", ["text", "first", "second", "complete"]),
        ("unknown-type", ["progress"] * 3),
        ("upper-case-type", ["TEXT", "FIRST", "COMPLETE"]),
        ("failed", ["text", "error"]),
        ("failed-as-complete", ["text", "complete"]),
        ("sensitive, only-complete", ["error"]),
    ],
)
async def test_callbacks_are_sent_in_this_order(
    client: httpx.AsyncClient, receiver: CallbackReceiver, fault: str, types: list[str]
) -> None:
    task_id = await create_task(client, f"rain [fault: {fault}]", callBackUrl=receiver.url)
    await eventually(lambda: len(receiver.bodies) == len(types))
    await poll_until_final(client, task_id)

    assert receiver.types == types


async def test_dropped_callbacks_are_never_sent(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    task_id = await create_task(client, "rain [fault: drop-callbacks]", callBackUrl=receiver.url)
    data = await poll_until_final(client, task_id)
    [task] = await tasks_for(client, receiver.url)

    assert data["status"] == "SUCCESS"
    assert (receiver.bodies, task["callbacks"]) == ([], [])


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("failed", 500, "GENERATE_AUDIO_FAILED"),
        ("failed=451", 451, "GENERATE_AUDIO_FAILED"),
        ("failed-as-complete=408", 408, "GENERATE_AUDIO_FAILED"),
        ("create-failed", 500, "CREATE_TASK_FAILED"),
        ("sensitive", 400, "SENSITIVE_WORD_ERROR"),
        ("refunded", 531, "GENERATE_AUDIO_FAILED"),
    ],
)
async def test_failure_is_reported_by_callback_and_poll(
    client: httpx.AsyncClient, receiver: CallbackReceiver, fault: str, code: int, status: str
) -> None:
    task_id = await create_task(client, f"rain [fault: {fault}]", callBackUrl=receiver.url)
    await eventually(lambda: len(receiver.bodies) == 2)
    data = await poll_until_final(client, task_id)
    [task] = await tasks_for(client, receiver.url)

    last = receiver.messages[-1]
    assert (last["code"], last["data"]["data"]) == (code, None)
    assert (data["status"], data["errorCode"], data["response"]) == (status, code, None)
    assert (task["status"], task["failure_code"]) == (status, code)


async def complete_body(client: httpx.AsyncClient, receiver: CallbackReceiver, fault: str) -> tuple[str, Any]:
    """The id of a task with this fault, and the body of its complete callback."""
    task_id = await create_task(client, f"rain [fault: only-complete, {fault}]", callBackUrl=receiver.url)
    await eventually(lambda: bool(receiver.bodies))
    return task_id, receiver.messages[0]


@pytest.mark.parametrize(("fault", "items"), [("null-data", None), ("empty-data", [])])
async def test_callback_without_clips(
    client: httpx.AsyncClient, receiver: CallbackReceiver, fault: str, items: Any
) -> None:
    task_id, body = await complete_body(client, receiver, fault)

    assert body["data"] == {"callbackType": "complete", "task_id": task_id, "data": items}


async def test_callback_in_the_shape_of_a_poll(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    task_id, body = await complete_body(client, receiver, "poll-shaped")

    assert (body["data"]["taskId"], body["data"]["status"]) == (task_id, "SUCCESS")
    assert all(clip["audioUrl"] for clip in body["data"]["response"]["sunoData"])


async def test_failure_in_the_shape_of_a_poll(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    _, body = await complete_body(client, receiver, "poll-shaped, sensitive")

    assert (body["data"]["status"], body["data"]["errorCode"]) == ("SENSITIVE_WORD_ERROR", 400)


async def test_callback_in_camel_case(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    task_id, body = await complete_body(client, receiver, "camel-case")

    assert body["data"]["taskId"] == task_id
    assert "audioUrl" in body["data"]["data"][0]


async def test_callback_with_the_id_at_the_top_level(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    task_id, body = await complete_body(client, receiver, "top-level-id")

    assert body["task_id"] == task_id
    assert "task_id" not in body["data"]


@pytest.mark.parametrize(("fault", "has_id"), [("missing-id", False), ("wrong-id", True)])
async def test_callback_without_the_id_of_its_task(
    client: httpx.AsyncClient, receiver: CallbackReceiver, fault: str, has_id: bool
) -> None:
    task_id, body = await complete_body(client, receiver, fault)

    assert ("task_id" in body["data"]) is has_id
    assert task_id not in json.dumps(body).replace("/", "")


async def test_callback_with_strings_for_numbers(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    _, body = await complete_body(client, receiver, "callback-string-code, digit-times")

    assert body["code"] == "200"
    assert body["data"]["data"][0]["createTime"].isdigit()


async def test_malformed_callback_cannot_be_parsed(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    await create_task(client, "rain [fault: only-complete, malformed-callback]", callBackUrl=receiver.url)
    await eventually(lambda: bool(receiver.bodies))

    with pytest.raises(json.JSONDecodeError):
        _ = receiver.messages
