"""Which tasks are polled, and in which order: those that callers wait for come first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.services import Services
from app.workers.poll import Poll, poll_loop
from tests.support.rows import add_key, add_task
from tests.support.service import serve_with_sandbox, services_of
from tests.support.settings import UPSTREAM_KEY
from tests.support.wait import eventually

S = TaskStatus
# Of the twenty slots polls may use fifteen, or five while tasks are queued.
RATE = "20/10"


@asynccontextmanager
async def many_given_up(database_url: str) -> AsyncIterator[tuple[Services, str]]:
    """The parts of the service, and the key of sixty tasks that were given up and are due since ten minutes."""
    async with services_of(database_url, upstream_rate=RATE) as services:
        key = await add_key(services.database)
        async with services.database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, await services.database.now(session))
        for _ in range(60):
            await add_due(services, key, S.failed, error_code=ErrorCode.deadline_exceeded)
        yield services, key


async def add_due(services: Services, key: str, status: TaskStatus, minutes: float = 10, **columns: Any) -> Task:
    """Add a task that has been due for that long."""
    now = datetime.now(UTC)
    due = {"submitted_at": now - timedelta(hours=1), "due_at": now - timedelta(minutes=minutes)}
    return await add_task(services.database, key, status, upstream_task_id="up-1", **due, **columns)


async def claim(services: Services) -> list[Poll]:
    return list((await poll_loop(services).claim(20)).items)


async def test_generating_task_is_polled_before_all_that_were_given_up(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        living = await add_due(services, key, S.generating, minutes=1)

        polls = await claim(services)

    assert polls[0].task.id == living.id
    assert len({poll.slot.number for poll in polls}) == len(polls) == 1 + 3


async def test_tasks_that_were_given_up_use_a_fifth_of_the_polls(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        first, second = await claim(services), await claim(services)
        for _ in range(20):
            await add_due(services, key, S.generating, minutes=0)
        living = await claim(services)

    assert (len(first), len(second)) == (3, 0)
    assert {poll.task.status for poll in living} == {S.generating}
    assert len(living) == 15 - 3


async def test_tasks_that_were_given_up_use_one_poll_while_tasks_are_queued(database_url: str) -> None:
    async with many_given_up(database_url) as (services, key):
        await add_due(services, key, S.queued)
        for _ in range(5):
            await add_due(services, key, S.generating, minutes=0)

        living, late = await claim(services), await claim(services)

    assert [poll.task.status for poll in living] == [S.generating] * 5
    assert late == []


async def test_clip_that_a_success_misses_is_found_by_a_poll(database_url: str, tmp_path: Path) -> None:
    sandbox = {"fault": "drop-callbacks", "delay": 1}
    async with serve_with_sandbox(database_url, tmp_path, sandbox=sandbox, poll_after=600) as service:
        task = await service.until(await service.create_task(), lambda task: task["upstream_task_id"] is not None)
        reported: list[Any] = []
        headers = {"Authorization": f"Bearer {UPSTREAM_KEY}"}

        async def is_ready() -> bool:
            path = "/api/v1/generate/record-info"
            answer = (
                await service.upstream.get(path, params={"taskId": task["upstream_task_id"]}, headers=headers)
            ).json()
            reported[:] = (answer["data"]["response"] or {}).get("sunoData") or []
            return bool(answer["data"]["status"] == "SUCCESS")

        await eventually(is_ready)
        first, second = reported
        clips = [first, {**second, "audioUrl": "", "sourceAudioUrl": None}]
        data = {"callbackType": "complete", "task_id": task["upstream_task_id"], "data": clips}
        callback = {"code": 200, "msg": "All generated successfully.", "data": data}
        (await service.client.post(service.callback_path(task["id"]), json=callback)).raise_for_status()
        partial = await service.task(task["id"])
        whole = await service.until(task["id"], lambda task: len(task["clips"]) == 2)

    assert (partial["status"], len(partial["clips"])) == ("succeeded", 1)
    assert (whole["resolved_by"], whole["completed_at"]) == ("callback", partial["completed_at"])
    assert whole["clips"][1]["upstream_clip_id"] == second["id"]
