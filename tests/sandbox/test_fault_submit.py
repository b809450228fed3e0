"""Faults of the submit call: its response, and whether the task was created in spite of it."""

import httpx
import pytest

from app.sandbox import FAULTS
from tests.sandbox.running import (
    CallbackReceiver,
    codes,
    create_task,
    running_sandbox,
    serving_receiver,
    submit,
    tasks_for,
    unreachable_url,
)

REFUSING = [name for name, fault in FAULTS.items() if fault.group == "Submit" and fault.response and not fault.creates]
CREATING = [name for name, fault in FAULTS.items() if fault.group == "Submit" and fault.response and fault.creates]
SILENT = {"reset", "hang", "accept-then-reset", "accept-then-hang"}


@pytest.mark.parametrize("fault", sorted({*REFUSING, *CREATING} - SILENT))
async def test_fault_replaces_the_response_whether_or_not_the_task_is_created(
    client: httpx.AsyncClient, fault: str
) -> None:
    url = unreachable_url()
    answer = await submit(client, f"rain [fault: {fault}]", callBackUrl=url)
    expected = FAULTS[fault].response

    assert expected is not None
    assert answer.status_code == (200 if expected.kind == "envelope" else expected.code)
    if expected.kind == "envelope":
        assert (answer.json()["code"], answer.json()["data"]) == (expected.code, None)
    else:
        assert not answer.content.startswith(b"{")
    assert len(await tasks_for(client, url)) == (1 if fault in CREATING else 0)


@pytest.mark.parametrize(("fault", "tasks"), [("reset", 0), ("accept-then-reset", 1)])
async def test_reset_sends_no_response(client: httpx.AsyncClient, fault: str, tasks: int) -> None:
    url = unreachable_url()
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await submit(client, f"rain [fault: {fault}]", callBackUrl=url)

    assert len(await tasks_for(client, url)) == tasks
    entries = (await client.get("/journal", params={"path": "/api/v1/generate/sounds"})).json()
    [entry] = [entry for entry in entries if entry["callback_url"] == url]
    assert (entry["created"], entry["status"], entry["code"]) == (tasks == 1, None, None)


@pytest.mark.parametrize(("fault", "tasks"), [("hang", 0), ("accept-then-hang", 1)])
async def test_hanging_submit_gets_no_response(client: httpx.AsyncClient, fault: str, tasks: int) -> None:
    url = unreachable_url()
    with pytest.raises(httpx.ReadTimeout):
        await submit(client, f"rain [fault: {fault}]", within=0.5, callBackUrl=url)

    assert len(await tasks_for(client, url)) == tasks


async def test_hanging_submits_do_not_keep_the_sandbox_from_stopping() -> None:
    async with running_sandbox() as client:
        for fault in ("hang", "slow=60", "drip=60"):
            with pytest.raises(httpx.ReadTimeout):
                await submit(client, f"[fault: {fault}] rain", within=0.2)


async def test_counted_fault_ends_after_that_many_submits_of_one_task(client: httpx.AsyncClient) -> None:
    first, other = unreachable_url(), unreachable_url()
    prompt = "rain [fault: code-405=2]"
    answers = [await submit(client, prompt, callBackUrl=url) for url in (first, first, other, first, other, other)]

    assert codes(*answers) == [405, 405, 405, 200, 405, 200]


async def test_retry_after_ends_when_its_time_is_over() -> None:
    async with running_sandbox() as client:
        url = unreachable_url()
        answers = [await submit(client, "[fault: retry-after=0.3] rain", callBackUrl=url)]
        while answers[-1].status_code == 429:
            answers.append(await submit(client, "[fault: retry-after=0.3] rain", callBackUrl=url))

    assert answers[0].headers["Retry-After"] == "1"
    assert codes(answers[-1]) == [200]


async def test_malformed_responses_of_created_tasks(client: httpx.AsyncClient) -> None:
    bodies = {}
    for fault in ("string-code", "snake-case-answer", "no-task-id", "odd-types", "huge-answer=1", "slow=0.1"):
        url = unreachable_url()
        bodies[fault] = (await submit(client, f"rain [fault: {fault}]", callBackUrl=url)).json()
        [task] = await tasks_for(client, url)
        bodies[fault]["id"] = task["task_id"]

    assert bodies["string-code"]["code"] == "200"
    assert bodies["snake-case-answer"]["data"] == {"task_id": bodies["snake-case-answer"]["id"]}
    assert bodies["no-task-id"]["data"] is None
    assert bodies["odd-types"]["data"] == [bodies["odd-types"]["id"]]
    assert len(bodies["huge-answer=1"]["padding"]) == 1_000_000
    assert bodies["slow=0.1"]["data"] == {"taskId": bodies["slow=0.1"]["id"]}


async def test_response_in_small_pieces_is_complete(client: httpx.AsyncClient) -> None:
    answer = await submit(client, "rain [fault: drip=0.2]")

    assert answer.elapsed.total_seconds() > 0.1
    assert codes(answer) == [200]


async def test_callback_is_sent_before_the_response(client: httpx.AsyncClient, receiver: CallbackReceiver) -> None:
    await create_task(client, "rain [fault: callback-before-answer]", callBackUrl=receiver.url)

    assert receiver.types[0] == "text"


async def test_stopping_sandbox_wakes_a_submit_that_waits_for_its_callback() -> None:
    async with running_sandbox(delay=60) as client, serving_receiver() as receiver:
        with pytest.raises(httpx.ReadTimeout):
            await submit(client, "rain [fault: callback-before-answer]", within=0.2, callBackUrl=receiver.url)

    assert receiver.bodies == []


async def test_unknown_fault_is_an_invalid_submit_and_the_message_lists_the_known_ones(
    client: httpx.AsyncClient,
) -> None:
    answer = (await submit(client, "rain [fault: drop-callback]")).json()

    assert answer["code"] == 400
    assert all(name in answer["msg"] for name in FAULTS)


async def test_fault_of_the_option_applies_to_prompts_without_a_tag() -> None:
    async with running_sandbox(fault="code-455") as client:
        answers = [await submit(client, "rain"), await submit(client, "rain [fault: code-430]")]

    assert codes(*answers) == [455, 430]


async def test_seed_decides_which_submits_get_which_faults() -> None:
    runs = []
    for seed in (1, 1, 2):
        async with running_sandbox(fault="code-430:0.4,code-455:0.3", seed=seed) as client:
            runs.append(codes(*[await submit(client) for _ in range(30)]))

    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0]) == {200, 430, 455}
