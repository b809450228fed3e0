"""A process dies or stands still at each point of the submit path; every order is sent once or honestly unknown."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.faults.databases import IN_USE, locked
from tests.faults.ledger import Ledger, read_ledger
from tests.support.api import client_of, create_task, until_final, until_status
from tests.support.processes import Process, Processes
from tests.support.receivers import full_backlog
from tests.support.sandbox import submits_at
from tests.support.wait import eventually

# A lease is the timeout and 15 s; what nobody hears of is given up a moment after it.
SETTINGS: dict[str, str | None] = {
    "upstream_rate": "50/1",
    "upstream_timeout": "6",
    "submit_deadline": "24",
    "poll_after": "1",
    "poll_every": "0.5",
}
LATE = "delay-callbacks=4"
# What is settled once a task has ended; copies of its audio may still come.
DECIDED = ("status", "resolved_by", "error", "upstream_task_id", "charge", "submitted_at", "completed_at")


@pytest.mark.slow
async def test_every_point_of_the_submit_path_may_be_the_last(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, **SETTINGS) as processes:
        sandbox = await processes.sandbox(delay=0.3, rate=1000)
        service = await processes.serve(database_url, sandbox.url, "--no-loops")
        stage = _Stage(processes, database_url, sandbox, service.url)
        async with client_of(service.url) as client:
            tasks = {
                "after the claim": await stage.killed_before_sending(client),
                **await stage.killed_while_the_upstream_works(client),
            }
            stopped, paused = await stage.stopped_while_the_upstream_works(client)
            tasks["before the claim"] = (await create_task(client))["id"]
            stage.worker()
            tasks |= paused

            # The one that was stopped comes back after its lease, with the answers: one task went on without it.
            await until_status(client, paused["stopped, unheard of"], "unconfirmed", "failed", within=60)
            before = await until_final(client, paused["stopped, called meanwhile"], within=60)
            stopped.resume()
            await eventually(lambda: all(_has_answer(stopped, task_id) for task_id in paused.values()))
            ends = {point: await until_final(client, task_id, within=60) for point, task_id in tasks.items()}
        ledger = await read_ledger(database_url, sandbox.url)

    assert {point: (end["status"], end["charge"]) for point, end in ends.items()} == {
        "before the claim": ("succeeded", "charged"),
        "after the claim": ("failed", "possible"),
        "mid-POST, not taken": ("failed", "possible"),
        "mid-POST, taken": ("succeeded", "charged"),
        "after the answer": ("succeeded", "charged"),
        "stopped, called meanwhile": ("succeeded", "charged"),
        "stopped, unheard of": ("failed", "possible"),
    }
    assert _arrivals(ledger, tasks) == {point: int(point != "after the claim") for point in tasks}
    after = ends["stopped, called meanwhile"]
    assert {fact: after[fact] for fact in DECIDED} == {fact: before[fact] for fact in DECIDED}
    assert ledger.disagreements() == []


class _Stage:
    """Brings a worker to one point of the submit path and stops it there."""

    def __init__(self, processes: Processes, database_url: str, sandbox: Process, public_url: str) -> None:
        self._processes, self._database_url, self._sandbox = processes, database_url, sandbox
        self._public_url = public_url

    def worker(self) -> Process:
        return self._processes.worker(self._database_url, self._sandbox.url, public_url=self._public_url)

    async def killed_before_sending(self, client: httpx.AsyncClient) -> str:
        """Claimed and committed, but the connection never came about."""
        with full_backlog() as url:
            worker = self._processes.start(
                "worker", database_url=self._database_url, upstream_url=url, public_url=self._public_url
            )
            task = await create_task(client)
            await until_status(client, task["id"], "submitting", within=60)
            worker.kill()
        return str(task["id"])

    async def killed_while_the_upstream_works(self, client: httpx.AsyncClient) -> dict[str, str]:
        """Two requests arrived and no answer came; that of a third was read, and the database did not take it."""
        worker = self.worker()
        answered = await self._arrived(client, f"slow=2, {LATE}")
        untaken = await self._arrived(client, "hang")
        taken = await self._arrived(client, f"accept-then-hang, {LATE}")
        with locked(self._database_url):
            await eventually(lambda: _has_answer(worker, answered))
            worker.kill()
        return {"mid-POST, not taken": untaken, "mid-POST, taken": taken, "after the answer": answered}

    async def stopped_while_the_upstream_works(self, client: httpx.AsyncClient) -> tuple[Process, dict[str, str]]:
        """The same as a kill for everybody else, until it goes on."""
        worker = self.worker()
        called = await self._arrived(client, "slow=4")
        unheard = await self._arrived(client, "slow=4, drop-callbacks")
        await _pause_between_transactions(worker, self._database_url)
        return worker, {"stopped, called meanwhile": called, "stopped, unheard of": unheard}

    async def _arrived(self, client: httpx.AsyncClient, fault: str) -> str:
        task_id = str((await create_task(client, f"soft rain [fault: {fault}]"))["id"])

        async def has_arrived() -> bool:
            await asyncio.sleep(0.1)
            return any(submit["caller_task_id"] == task_id for submit in await submits_at(self._sandbox.url))

        await eventually(has_arrived, within=60)
        return task_id


def _arrivals(ledger: Ledger, tasks: dict[str, str]) -> dict[str, int]:
    arrived = Counter(submit["caller_task_id"] for submit in ledger.submits)
    return {point: arrived[task_id] for point, task_id in tasks.items()}


def _has_answer(worker: Process, task_id: str) -> bool:
    """Whether a worker has what came of a submit in its hands."""
    lines = [json.loads(line) for line in worker.log.splitlines() if line.endswith("}")]
    return any((line["event"], line.get("task_id")) == ("submit", task_id) for line in lines)


async def _pause_between_transactions(worker: Process, database_url: str) -> None:
    """Who is stopped in the middle of a write stops others who want its rows: that is not looked at here."""
    while True:
        worker.pause()
        try:
            with locked(database_url, patience=0.2):
                return
        except IN_USE:
            worker.resume()
            await asyncio.sleep(0.05)
