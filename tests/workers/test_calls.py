"""What is kept of the calls about a task: in the statement that settles each, and for operators alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.models import Clip, Task
from app.services import Services
from app.workers.poll import poll_loop
from app.workers.submit import submit_loop
from tests.support.rows import add_key, add_task, reread
from tests.support.sandbox import serve_sandbox
from tests.support.service import serve_with_sandbox, services_of
from tests.support.statements import COMMIT, Statement, recorded


@asynccontextmanager
async def one_queued_task(database_url: str, prompt: str) -> AsyncIterator[tuple[Services, Task]]:
    async with (
        serve_sandbox(fault="drop-callbacks") as sandbox_url,
        services_of(database_url, upstream_url=sandbox_url, poll_after=0.4, public_url=None) as services,
    ):
        async with services.database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, await services.database.now(session))
        yield services, await add_task(services.database, await add_key(services.database), prompt=prompt)


def writes_of_tasks(statements: list[Statement]) -> list[str]:
    return [sql for sql, _ in statements if sql.lstrip().startswith("UPDATE tasks")]


async def test_submit_and_poll_are_kept_by_the_statements_that_settle_them(database_url: str) -> None:
    async with one_queued_task(database_url, "rain") as (services, task):
        submits, polls = submit_loop(services), poll_loop(services)
        [claimed] = (await submits.claim(1)).items
        with recorded(services.database) as at_submit:
            await submits.work(claimed)
        async with services.database.writes.begin() as session:
            (await session.get_one(Task, task.id)).due_at = task.created_at
        [polled] = (await polls.claim(1)).items
        with recorded(services.database) as at_poll:
            await polls.work(polled)
        calls = (await reread(services.database, task.id)).upstream_calls or []

    assert [(call["kind"], call["outcome"]) for call in calls] == [("submit", "ok"), ("poll", "ok")]
    assert calls[0]["started_at"] < calls[1]["started_at"]
    for statements in (at_submit, at_poll):
        assert statements.count(COMMIT) == 1
        assert len(writes_of_tasks(statements)) == 1
        assert "upstream_calls" in writes_of_tasks(statements)[0]


async def test_refused_submit_is_kept_with_its_code(database_url: str) -> None:
    async with one_queued_task(database_url, "rain [fault: code-429]") as (services, task):
        loop = submit_loop(services)
        [claimed] = (await loop.claim(1)).items
        await loop.work(claimed)
        [call] = (await reread(services.database, task.id)).upstream_calls or []

    assert (call["kind"], call["outcome"], call["code"]) == ("submit", "held", 429)


async def test_callers_see_nothing_of_the_calls(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived()
        stored = await reread(service.database, task["id"])
        clips: list[Clip] = stored.clips

    assert stored.upstream_calls
    assert "upstream_calls" not in task
    assert all(clip.archive_started_at and clip.archived_at for clip in clips)
    assert all(clip.created_at <= clip.archive_started_at <= clip.archived_at for clip in clips)  # type: ignore[operator]
