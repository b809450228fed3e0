"""Answers that come when the row was judged without them: what the upstream did is still true."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.database.engine import Session
from app.enums import Charge, ErrorCode, TaskStatus
from app.models import Task
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.repository import lock_task
from app.workers.poll import poll_loop
from app.workers.submit import submit_loop
from tests.support.processes import (
    UPSTREAM_KEY,
    Processes,
    client_of,
    eventually,
    order,
    submits_at,
    until_final,
    until_status,
)
from tests.support.service import MORNING, add_task, event_types, inside, reread
from tests.webhooks.service import joined

S = TaskStatus
DAY = timedelta(days=1)
Meanwhile = Callable[[TaskLifecycle, Session, Task, Any], None]


def _lease_ends(lifecycle: TaskLifecycle, session: Session, task: Task, now: Any) -> None:
    lifecycle.mark_unconfirmed(session, task, now)


def _is_given_up(lifecycle: TaskLifecycle, session: Session, task: Task, now: Any) -> None:
    lifecycle.mark_unconfirmed(session, task, now)
    assert lifecycle.expire_if_overdue(session, task, now + DAY)


def _is_canceled(lifecycle: TaskLifecycle, session: Session, task: Task, now: Any) -> None:
    lifecycle.cancel(session, task, now)


@pytest.mark.parametrize(
    ("meanwhile", "fault", "status", "charge", "error"),
    [
        (_lease_ends, "", S.generating, Charge.charged, None),
        (_lease_ends, "[fault: code-405]", S.queued, Charge.none, None),
        (_lease_ends, "[fault: code-429]", S.queued, Charge.none, None),
        (_lease_ends, "[fault: code-413]", S.failed, Charge.none, ErrorCode.invalid_request),
        (_lease_ends, "[fault: accept-then-500]", S.unconfirmed, Charge.possible, None),
        (_is_given_up, "", S.failed, Charge.charged, ErrorCode.outcome_unknown),
        (_is_given_up, "[fault: code-413]", S.failed, Charge.none, ErrorCode.outcome_unknown),
        (_is_canceled, "", S.canceled, Charge.charged, None),
        (_is_canceled, "[fault: code-400]", S.canceled, Charge.none, None),
        (_is_canceled, "[fault: accept-then-500]", S.canceled, Charge.possible, None),
    ],
)
async def test_answer_counts_after_the_row_was_judged(
    database_url: str,
    tmp_path: Path,
    meanwhile: Meanwhile,
    fault: str,
    status: TaskStatus,
    charge: Charge,
    error: ErrorCode | None,
) -> None:
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox("--callback-retries", "60", fault="drop-callbacks")
        async with joined(database_url, upstream_url=sandbox.url, upstream_api_key=UPSTREAM_KEY) as service:
            services = service.services
            async with services.database.writes.begin() as session:
                await services.gateway.pacer.prepare(session, await services.database.now(session))
            task = await service.order(await service.add_key(), prompt=f"rain {fault}")
            loop = submit_loop(services)
            [submit] = (await loop.claim(1)).items
            async with services.database.writes.begin() as session:
                locked = await lock_task(session, task.id)
                assert locked is not None
                meanwhile(services.lifecycle, session, locked, await services.database.now(session))

            await loop.work(submit)

            after = await reread(services.database, task.id)
            submits = await submits_at(sandbox)

    assert (after.status, after.charge, after.error_code, len(submits)) == (status, charge, error, 1)
    assert (after.upstream_task_id is not None) == (charge is Charge.charged)


async def test_late_refusal_of_an_earlier_submit_settles_nothing(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox(rate=1000)
        async with joined(database_url, upstream_url=sandbox.url, upstream_api_key=UPSTREAM_KEY) as service:
            services = service.services
            async with services.database.writes.begin() as session:
                await services.gateway.pacer.prepare(session, await services.database.now(session))
            task = await service.order(await service.add_key(), prompt="rain [fault: code-405]")
            loop = submit_loop(services)
            [submit] = (await loop.claim(1)).items
            async with services.database.writes.begin() as session:
                locked = await lock_task(session, task.id)
                assert locked is not None
                # Sent once more, and the answer to that is lost.
                locked.submitted_at = await services.database.now(session)
                services.lifecycle.mark_unconfirmed(session, locked, locked.submitted_at)

            await loop.work(submit)

            after = await reread(services.database, task.id)

    assert (after.status, after.charge) == (S.unconfirmed, Charge.possible)


async def test_what_was_given_up_is_asked_for_and_revived(database_url: str, tmp_path: Path) -> None:
    settings = {"task_deadline": "2", "poll_after": "1", "poll_every": "0.5"}
    with Processes(tmp_path, **settings) as processes:
        sandbox = await processes.sandbox(rate=1000)
        service = await processes.serve(database_url, sandbox, public_url=None)
        async with client_of(service) as client:
            task_id = (await order(client, "rain [fault: poll-500=7]"))["id"]
            given_up = await until_final(client, task_id)
            found = await until_status(client, task_id, "succeeded", within=60)
            events = (await client.get(f"/v1/tasks/{task_id}/events")).json()["items"]

    assert given_up["error"]["code"] == "deadline_exceeded"
    assert (found["error"], found["resolved_by"], len(found["clips"])) == (None, "poll", 2)
    kinds = [event["type"] for event in events if event["type"] not in ("task.progressed", "clip.archived")]
    assert kinds == ["task.created", "task.submitted", "task.failed", "task.revived", "task.succeeded"]


async def test_upstream_is_asked_no_more_when_it_has_forgotten(database_url: str) -> None:
    async with joined(database_url) as service:
        services = service.services
        columns = {"error_code": ErrorCode.deadline_exceeded, "upstream_task_id": "u1", "due_at": MORNING}
        key = await service.add_key()
        old = await add_task(services.database, key, S.failed, MORNING, **columns, submitted_at=MORNING)
        now = await service.now()
        young = await add_task(services.database, key, S.failed, MORNING, **columns, submitted_at=now - 13 * DAY)
        async with services.database.writes.begin() as session:
            await services.gateway.pacer.prepare(session, now)
        loop = poll_loop(services)

        for poll in (await loop.claim(10)).items:
            await loop.work(poll)

        after = [await reread(services.database, task.id) for task in (old, young)]
    assert after[0].due_at is None
    assert after[1].due_at is not None
    assert after[1].due_at > now


async def test_row_that_cannot_be_judged_costs_nobody_else_a_turn(database_url: str) -> None:
    async with inside(database_url, runs_workers=True, submit_deadline=60) as service:
        lost = {"submitted_at": MORNING, "charge": Charge.possible}
        # Such a URL is refused where it comes in; the row stands for whatever else a step may stumble over.
        broken = await service.task(S.unconfirmed, **lost, due_at=MORNING, webhook_url="http://a:b/")
        sound = await service.task(S.unconfirmed, **lost, due_at=MORNING + DAY)

        async def is_judged() -> bool:
            return (await reread(service.database, sound.id)).status is S.failed

        await eventually(is_judged)
        assert (await reread(service.database, broken.id)).status is S.unconfirmed
        assert await event_types(service.database, sound.id) == ["task.created", "task.failed"]
