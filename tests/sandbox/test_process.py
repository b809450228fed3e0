"""The sandbox as a process: the address it prints, its stop, its load, and no output apart from that."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from app.sandbox import FAULTS
from tests.sandbox.running import (
    CallbackReceiver,
    client_of,
    create_task,
    poll,
    running_sandbox,
    submit,
    tasks_for,
    unreachable_url,
)
from tests.support.wait import eventually

START = (
    "from app.sandbox import SandboxOptions, run_sandbox; run_sandbox(SandboxOptions(rate=10_000, api_key='sandbox'))"
)


@contextmanager
def sandbox_process() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A sandbox in its own process; yields the process and the URL."""
    process = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("sandbox listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_stops_at_once_with_exit_code_zero_and_no_output(number: signal.Signals) -> None:
    with sandbox_process() as (process, base):
        async with client_of(base) as client:
            await create_task(client, "rain [fault: delay-callbacks=60]", callBackUrl=unreachable_url())
            hanging = asyncio.create_task(submit(client, "rain [fault: hang]"))
            while len((await client.get("/journal", params={"kind": "request"})).json()) < 2:
                pass
            process.send_signal(number)
            begun = time.monotonic()
            await asyncio.to_thread(process.wait, 10)
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await hanging

        assert process.returncode == 0
        assert time.monotonic() - begun < 5
        assert process.communicate() == ("", "")


async def test_two_hundred_concurrent_tasks_get_all_their_callbacks(receiver: CallbackReceiver) -> None:
    with sandbox_process() as (_, base):
        async with client_of(base) as client:
            ids = await asyncio.gather(
                *(create_task(client, f"rain {n}", callBackUrl=receiver.url) for n in range(200))
            )
            await eventually(lambda: len(receiver.bodies) >= 600, within=60)
            tasks = (await client.get("/tasks")).json()

    assert sorted(receiver.types) == ["complete"] * 200 + ["first"] * 200 + ["text"] * 200
    assert {task["task_id"] for task in tasks} == set(ids)
    assert all(task["delivered"] == ["text", "first", "complete"] for task in tasks)


async def test_no_fault_makes_the_sandbox_log_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with running_sandbox() as client:
        names = iter([name for name, fault in FAULTS.items() if fault.group != "Account" and "hang" not in name])
        await asyncio.gather(*(_use_faults(client, names) for _ in range(10)))

    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


async def _use_faults(client: httpx.AsyncClient, names: Iterator[str]) -> None:
    for name in names:
        await _use_fault(client, name)


async def _use_fault(client: httpx.AsyncClient, fault: str) -> None:
    """Submit a task with this fault, poll it and download its clips."""
    url = unreachable_url()
    value = {"times": "=1", "seconds": "=0.05", "MB": "=1", "code": "=500", None: ""}[FAULTS[fault].unit]
    with suppress(httpx.TransportError):
        await submit(client, f"rain [fault: {fault}{value}]", callBackUrl=url)
    for task in await tasks_for(client, url):
        for _ in range(3):
            with suppress(httpx.TransportError, ValueError):
                await poll(client, task["task_id"])
        for clip in task["clips"]:
            with suppress(httpx.TransportError):
                answer = await client.get(f"/audio/{clip}.wav")
                assert answer.status_code != 500 or fault == "audio-500"


async def test_disconnect_during_a_submit_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with running_sandbox() as client:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /api/v1/generate/sounds HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        while not (await client.get("/journal")).json():
            pass
        writer.close()
        await writer.wait_closed()

    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
