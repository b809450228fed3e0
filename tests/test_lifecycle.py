"""SIGTERM: waiting requests get their responses, streams end, and the process exits within its grace period."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.supervisors.multiprocess import SIGNALS

from app import server
from tests.support.api import client_of, create_task, let_earlier_requests_arrive, sse_blocks, until_final
from tests.support.processes import Process, Processes, free_port
from tests.support.settings import ROOT, UNREACHABLE, settings_of
from tests.support.wait import eventually

GRACE = 5.0
# The upstream takes it, and never says that it is ready.
SLOW = "rain [fault: drop-callbacks]"


async def test_sigterm_answers_waits_ends_streams_and_exits_within_the_grace_period(
    tmp_path: Path, database_url: str
) -> None:
    with Processes(tmp_path, grace=str(GRACE)) as processes:
        service = await processes.serve(database_url, (await processes.sandbox()).url, "--no-loops")
        async with client_of(service.url) as client:
            task = await create_task(client)
            prefer = {"Prefer": "wait=50"}
            creating = asyncio.create_task(client.post("/v1/tasks", json={"prompt": "rain"}, headers=prefer))
            reading = asyncio.create_task(client.get(f"/v1/tasks/{task['id']}", headers=prefer))
            streaming = asyncio.create_task(_blocks(client, task))
            unfinished = await _send_half_a_request(service)
            await let_earlier_requests_arrive(client)
            began = time.monotonic()

            exit_code = await service.stop()

            seconds = time.monotonic() - began
            created, read, blocks = await asyncio.gather(creating, reading, streaming)
            unfinished.close()
    assert (created.status_code, created.json()["status"]) == (202, "queued")
    assert (read.status_code, read.json()["id"]) == (200, task["id"])
    assert "retry" in blocks[-1]
    assert exit_code == 0
    assert seconds < GRACE


async def test_drain_delay_answers_requests_while_readyz_is_503(tmp_path: Path, database_url: str) -> None:
    with Processes(tmp_path, grace="5", drain_delay="3") as processes:
        service = await processes.serve(database_url, (await processes.sandbox()).url)
        async with client_of(service.url) as client:
            waiting = asyncio.create_task(
                client.post("/v1/tasks", json={"prompt": "rain"}, headers={"Prefer": "wait=60"})
            )
            await let_earlier_requests_arrive(client)
            began = time.monotonic()
            stopping = asyncio.create_task(service.stop())
            await eventually(partial(_is_draining, client))
            task = await create_task(client)
            done = await until_final(client, task["id"])
            draining = await client.get("/readyz")
            answered = time.monotonic() - began
            assert draining.headers["connection"] == "close"
            waited = await waiting
            code = await stopping
            seconds = time.monotonic() - began

    assert (draining.status_code, list(draining.json()["checks"])) == (503, ["process"])
    assert done["status"] == "succeeded"
    assert waited.json()["status"] == "succeeded"
    assert answered < 3 <= seconds < 3 + GRACE
    assert code == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_request_is_answered_that_comes_while_the_service_says_that_it_is_ready(
    tmp_path: Path, database_url: str, workers: str
) -> None:
    answers: Counter[str] = Counter()
    leaving = asyncio.Event()

    async def call(client: httpx.AsyncClient) -> None:
        while not leaving.is_set():
            for request in (client.post("/v1/tasks", json={"prompt": "rain"}), client.get("/v1/tasks")):
                try:
                    answers[str((await request).status_code)] += 1
                except httpx.TransportError as error:
                    answers[repr(error)] += 1
            await asyncio.sleep(0.02)

    with Processes(tmp_path, grace=str(GRACE), drain_delay="2", upstream_rate="500/1") as processes:
        sandbox = await processes.sandbox(rate=1000)
        service = await processes.serve(database_url, sandbox.url, "--workers", workers)
        async with client_of(service.url) as client:
            callers = [asyncio.create_task(call(client)) for _ in range(4)]
            prefer = {"Prefer": "wait=60"}
            held = asyncio.create_task(client.post("/v1/tasks", json={"prompt": SLOW}, headers=prefer))
            await eventually(lambda: answers["202"] > 20, within=30)
            os.kill(service.pid, signal.SIGTERM)
            began = time.monotonic()
            await eventually(partial(_is_draining, client))
            # As a load balancer, which has seen it.
            leaving.set()
            await asyncio.gather(*callers)
            waited = await held
            code = await service.wait()
            seconds = time.monotonic() - began

    assert set(answers) == {"200", "202"}, answers
    assert (waited.status_code, waited.json()["status"]) == (202, "generating")
    assert code == 0
    assert seconds < 2 + GRACE


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_second_sigterm_ends_the_drain_delay(tmp_path: Path, migrated_sqlite: Path, workers: str) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'soundpost.db')}"
    with Processes(tmp_path, grace="5", drain_delay="60") as processes:
        service = await processes.serve(database_url, UNREACHABLE, "--no-loops", "--workers", workers)
        async with client_of(service.url) as client:
            os.kill(service.pid, signal.SIGTERM)
            await eventually(partial(_is_draining, client))
        code = await service.stop(within=10)

    assert code == 0


async def _is_draining(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 503


async def _blocks(client: httpx.AsyncClient, task: dict[str, Any]) -> list[dict[str, str]]:
    async with client.stream(
        "GET", f"/v1/tasks/{task['id']}/events", headers={"Accept": "text/event-stream"}
    ) as response:
        return [block async for block in sse_blocks(response)]


async def _send_half_a_request(service: Process) -> asyncio.StreamWriter:
    url = httpx.URL(service.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: ")
    await writer.drain()
    return writer


async def test_server_processes_that_take_long_to_start_are_waited_for(migrated_sqlite: Path, tmp_path: Path) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "soundpost.db")
    # Uvicorn by itself kills a process that does not answer within five seconds.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif '--multiprocessing-fork' in sys.orig_argv:\n    time.sleep(7)\n"
    )
    processes = Processes(tmp_path, database_url=f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", log_format="json")
    environment = {**processes.environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", "2", "--no-loops"]
    with (tmp_path / "log").open("w") as log:
        service = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        await eventually(lambda: len(_server_processes(service.pid)) == 2, within=60)
        # Neither process answers yet, and the end of one is noticed at once.
        os.kill(_server_processes(service.pid)[1], signal.SIGKILL)
        await eventually(lambda: "server_process_replaced" in (tmp_path / "log").read_text(), within=5)
        async with client_of(f"http://127.0.0.1:{port}") as client:
            await eventually(partial(_is_alive, client), within=60)
        service.terminate()
        code = await asyncio.wait_for(service.wait(), 30)
    finally:
        if service.returncode is None:
            service.kill()

    said = (tmp_path / "log").read_text()
    assert code == 0, said
    assert "Started parent process" in said
    replaced = [line for line in map(json.loads, said.splitlines()[1:]) if line["event"] == "server_process_replaced"]
    assert [(line["problem"], line["exit_code"]) for line in replaced] == [("it ended", -signal.SIGKILL)]


async def test_server_processes_end_with_their_parent(migrated_sqlite: Path, tmp_path: Path) -> None:
    with Processes(tmp_path, log_format="json") as processes:
        database_url = f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'soundpost.db')}"
        service = await processes.serve(database_url, UNREACHABLE, "--no-loops", "--workers", "2")
        children = _server_processes(service.pid)
        service.kill()
        try:
            await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        finally:
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        log = service.log

    assert len(children) == 2
    assert log.count("Application shutdown complete.") == 2


@pytest.mark.usefixtures("_signal_handlers_stay_as_they_are")
def test_server_process_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PROCESS_TIMEOUT", timedelta(seconds=0.1))
    supervisor = server.Supervisor(
        uvicorn.Config("unused:app", workers=1, log_config=None), [], settings_of("sqlite+aiosqlite:///unused.db")
    )
    supervisor.init_processes()
    [first] = supervisor.processes
    assert first.pid
    os.kill(first.pid, signal.SIGSTOP)

    with capture_logs() as lines:
        supervisor.keep_subprocess_alive()
        is_kept = supervisor.processes == [first]
        time.sleep(0.15)
        supervisor.keep_subprocess_alive()
    [second] = supervisor.processes
    second.kill()
    second.join()

    assert is_kept
    assert second is not first
    assert first.exitcode == -signal.SIGKILL
    assert [line["problem"] for line in lines] == ["no answer within 0 s"]


@pytest.fixture
def _signal_handlers_stay_as_they_are() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _server_processes(parent: int) -> list[int]:
    """The processes that a server with several has started."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [pid for pid in children if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def _is_alive(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/livez", timeout=2)).is_success
    except httpx.TransportError:
        return False
