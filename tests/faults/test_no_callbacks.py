"""No callback ever comes, or the upstream has no address to call: polls do the work."""

from datetime import datetime
from pathlib import Path
from typing import Any

from tests.faults.ledger import read_ledger
from tests.support.api import client_of, create_task, until_final
from tests.support.processes import Processes

ORDERS = 5


async def test_dropped_callbacks_lose_nothing_and_make_polls_eager(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, poll_after="7", poll_every="1") as processes:
        sandbox = await processes.sandbox(delay=0.3, fault="drop-callbacks")
        async with client_of((await processes.serve(database_url, sandbox.url)).url) as client:
            first = [(await create_task(client))["id"] for _ in range(ORDERS)]
            patient = [await until_final(client, task_id) for task_id in first]
            eager = await until_final(client, (await create_task(client))["id"])
        ledger = await read_ledger(database_url, sandbox.url)

    assert {(task["status"], task["resolved_by"]) for task in [*patient, eager]} == {("succeeded", "poll")}
    # Seven seconds at first; from three once the latest tasks show that nobody calls. A fifth more or less.
    assert min(_seconds_to_the_end(task) for task in patient) > 5.5
    assert _seconds_to_the_end(eager) < 5.5
    assert ledger.disagreements() == []


async def test_without_a_public_url_polls_find_every_sound(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, public_url=None) as processes:
        sandbox = await processes.sandbox(delay=0.3)
        async with client_of((await processes.serve(database_url, sandbox.url, public_url=None)).url) as client:
            ids = [(await create_task(client))["id"] for _ in range(ORDERS)]
            tasks = [await until_final(client, task_id) for task_id in ids]
        ledger = await read_ledger(database_url, sandbox.url)

    assert {(task["status"], task["resolved_by"]) for task in tasks} == {("succeeded", "poll")}
    assert max(_seconds_to_the_end(task) for task in tasks) < 5.5
    assert ledger.disagreements() == []


def _seconds_to_the_end(task: dict[str, Any]) -> float:
    submitted, completed = (datetime.fromisoformat(task[name]) for name in ("submitted_at", "completed_at"))
    return (completed - submitted).total_seconds()
