"""No statement of the hot path reads a table from end to end that grows with the number of orders."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import select

from app.auth.api_keys import create_key
from app.auth.callers import OPERATOR
from app.enums import TaskStatus
from app.lifecycle import loops_of
from app.models import ApiKey, WebhookEndpoint
from app.retention import Retention
from app.tasks.locking import lock_queued
from app.tasks.schemas import TaskFilters
from app.workers.archive import archive_loop
from app.workers.deliver import deliver_loop
from app.workers.periodic import periodic_loop, prepare_jobs
from app.workers.poll import poll_loop
from app.workers.remove_files import remove_files_loop
from app.workers.runner import Item, Loop, wake_due
from app.workers.submit import submit_loop
from app.workers.sweep import sweep_loop
from tests.support.filling import (
    GROWING,
    Owner,
    add_owner,
    fill_deliveries,
    fill_finished,
    fill_ledger,
    fill_leftovers,
    fill_queued,
    fill_sums,
    settle_statistics,
)
from tests.support.rows import add_key
from tests.support.scrapes import scrape
from tests.support.service import Service, serve
from tests.support.settings import KEY
from tests.support.statements import Statement, recorded

TASK_FILTERS = [
    "",
    "status=queued",
    "status=generating",
    "status=failed",
    "model=V4",
    "model=V3",
    "created_after=2026-01-01T00:00:00Z",
    "created_before=2036-01-01T00:00:00Z",
    "metadata.scene=s7",
    "metadata.scene=s7&metadata.part=p7",
    "metadata.part=p7&metadata.scene=nowhere",
    "metadata.scene=nowhere&status=succeeded&model=V5",
]
CLIP = {"id": "c1", "audio_url": "http://127.0.0.1:9/c1.mp3", "title": "Rain", "duration": 3.5}
# SQLite's plan, and PostgreSQL's.
BY_QUEUE = r"SEARCH tasks(?:_\d+)? USING (?:COVERING )?INDEX ix_tasks_queue|Index (?:Only )?Scan using ix_tasks_queue"
EXPLAINED = re.compile(r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b")


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """The service without its workers, over tables of some ten thousand rows."""
    async with serve(database_url, key_rate="1000/60") as service:
        database = service.database
        async with database.transaction() as (session, now):
            await prepare_jobs(session, now)
            key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "tests"))).one()
        key_ids = [key_id, *[await add_key(database, f"caller {number}") for number in range(7)]]
        owners = [await add_owner(database, each) for each in key_ids]
        await fill_finished(database, owners, 20_000)
        await fill_queued(database, owners, 4_000)
        for status in ("pending", "delivered", "given_up"):
            await fill_deliveries(database, owners, 6_000, status)
        await fill_leftovers(database, owners, 40_000)
        await fill_sums(database)
        await fill_ledger(database, owners, 20_000)
        await settle_statistics(database)
        yield service


async def test_no_statement_of_the_hot_path_scans_a_growing_table(service: Service) -> None:
    owner = await _owner(service)
    with recorded(service.database) as statements:
        await _order_and_read(service)
        await _list(service, owner)
        await _submit_and_receive(service)
        await _prune(service)
        await _deliver_archive_and_remove(service)
        for key in (KEY, await _admin_key(service)):
            await _look_at_pages(service, owner, key)
        await _give_budgets(service, owner)
        await _operate(service, owner)
        await _replay(service)

    plans = await _plans(service, {statement.sql: statement for statement in statements}.values())
    scans = {sql: plan for sql, plan in plans.items() if _scans(sql, plan)}
    assert not scans, "\n\n".join(f"{sql}\n{plan}" for sql, plan in scans.items())
    # Usage looks at those tasks alone that its sums do not hold yet.
    usage = [plan for sql, plan in plans.items() if "usage_sums" in sql and sql.startswith("SELECT")]
    assert [all(f"ix_{table}_uncounted" in plan for table in ("tasks", "spent_charges")) for plan in usage] == 6 * [
        True
    ]
    ledger = [plan for sql, plan in plans.items() if "ORDER BY ledger_entries.created_at DESC" in sql]
    assert len(ledger) == 3
    assert all("ix_ledger_entries_api_key_id_created_at_number" in plan for plan in ledger), ledger
    by_model = [plan for sql, plan in plans.items() if "tasks.model =" in sql and "JOIN" not in sql]
    assert by_model
    assert all("ix_tasks_api_key_id_model_created_at_id" in plan for plan in by_model), by_model
    # Who is next, the claim, and the places: each walks along the queue, for each of its parts.
    for part, least in {"JOIN queue_tags ON": 2, "of_key_0": 1, "WITH asked": 2}.items():
        walks = [plan for sql, plan in plans.items() if part in sql]
        assert walks, part
        assert [plan for plan in walks if len(re.findall(BY_QUEUE, plan)) < least] == []
    replayed = [plan for sql, plan in plans.items() if "FROM callbacks AS callbacks_1" in sql]
    assert len(replayed) == 2
    assert all(re.search("pk_callbacks|sqlite_autoindex_callbacks_1", plan) for plan in replayed), replayed
    searches = [plan for sql, plan in plans.items() if "JOIN task_labels" in sql]
    by_label = "ix_task_labels_api_key_id_name_value_created_at_task_id", "pk_tasks|sqlite_autoindex_tasks_1"
    assert len(searches) >= 4
    assert all(re.search(index, plan) for index in by_label for plan in searches), searches
    # The use cases above reached what they are meant to reach.
    missed = [table for table in GROWING if not any(table in sql for sql in plans)]
    assert (missed, len(plans) > 60) == ([], True)


async def _order_and_read(service: Service) -> None:
    order = {"prompt": "soft rain", "metadata": {"scene": "s7"}}
    once = {"Idempotency-Key": "once"}
    placed = (await service.client.post("/v1/tasks", json=order, headers=once)).raise_for_status().json()
    await service.client.post("/v1/tasks", json=order, headers=once)
    await service.client.post("/v1/tasks", json={**order, "webhook_url": "https://example.com/hook"})
    await service.client.put(f"/v1/tasks/{32 * 'f'}", json=order)
    await service.client.post("/v1/tasks", json=order, headers={"Prefer": "reuse=60"})
    path = f"/v1/tasks/{placed['id']}"
    for part in ("", "/events", "/callbacks"):
        (await service.client.get(path + part)).raise_for_status()
    await service.client.get(path, headers={"Prefer": "wait=1"})
    await service.client.get("/api/v1/generate/record-info", params={"taskId": placed["id"]})
    (await service.client.post(f"{path}/cancel")).raise_for_status()
    (await service.client.get(f"{path}/events", headers={"Accept": "text/event-stream"})).raise_for_status()
    (await service.client.delete(path)).raise_for_status()


async def _list(service: Service, owner: Owner) -> None:
    for query in TASK_FILTERS:
        first = (await service.client.get(f"/v1/tasks?limit=20&{query}")).raise_for_status()
        if "next" in first.links:
            (await service.client.get(first.links["next"]["url"])).raise_for_status()
    for status in (None, *TaskStatus):
        await service.services.tasks.list(OPERATOR, TaskFilters(status=status), {}, None, 51)
    await service.services.tasks.list(OPERATOR, TaskFilters(), {"scene": "nowhere"}, None, 51)
    statuses = [f"status={status}" for status in ("pending", "delivered", "given_up")]
    of_endpoint, of_task = f"endpoint_id={owner.endpoint_id}", "task_id=1" + 30 * "0" + "1"
    of_both = [f"{query}&{status}" for query in (of_endpoint, of_task) for status in statuses]
    for query in ("", *statuses, of_endpoint, of_task, *of_both):
        (await service.client.get(f"/v1/deliveries?limit=20&{query}")).raise_for_status()
    for filters in ({}, {"status": "pending"}):
        found = await service.services.webhooks.list_deliveries(OPERATOR, filters, None, 51)
        for after in (None, (found[0].created_at, found[0].id)):
            await service.services.webhooks.list_attempts(OPERATOR, found[0].id, after, 51)
    part = datetime.now(UTC) - timedelta(days=3, minutes=7, seconds=7)
    for query in ("", "?since=2026-01-01T00:00:00Z&until=2036-01-01T00:00:00Z", f"?since={part:%Y-%m-%dT%H:%M:%SZ}"):
        (await service.client.get(f"/v1/usage{query}")).raise_for_status()
        (await service.client.get("/v1/usage?by=day&" + query.removeprefix("?"))).raise_for_status()
    (await service.client.get(f"/v1/ledger?limit=20&since={part:%Y-%m-%dT%H:%M:%SZ}")).raise_for_status()
    first = (await service.client.get("/v1/ledger?limit=20")).raise_for_status()
    (await service.client.get(first.links["next"]["url"])).raise_for_status()
    (await service.client.get("/v1/budget")).raise_for_status()


async def _submit_and_receive(service: Service) -> None:
    submits = submit_loop(service.services)
    unsent, sent = (await submits.claim(2)).items
    await submits.work(unsent)
    for kind in ("first", "complete", "complete"):
        report = {"code": 200, "msg": "ok", "data": {"callbackType": kind, "task_id": "u1", "data": [CLIP]}}
        (await service.anonymous.post(service.callback_path(sent.task.id), json=report)).raise_for_status()
    past = datetime.now(UTC) - timedelta(minutes=1)
    for status in (TaskStatus.submitting, TaskStatus.unconfirmed, TaskStatus.generating):
        await service.add_task(status, now=past, upstream_task_id="u2" if status is TaskStatus.generating else None)
    await _run(poll_loop(service.services))


async def _run(loop: Loop[Item]) -> None:
    """One turn of a loop, which finds something to do."""
    claimed = (await loop.claim(3)).items
    assert claimed, loop.name
    for item in claimed:
        await loop.work(item)


async def _deliver_archive_and_remove(service: Service) -> None:
    await wake_due(loops_of(service.services), service.database)
    await _run(deliver_loop(service.services))
    await _run(archive_loop(service.services))
    await _run(remove_files_loop(service.services))


async def _admin_key(service: Service) -> str:
    async with service.database.transaction() as (session, now):
        return await create_key(session, "admin", now, is_admin=True)


async def _give_budgets(service: Service, owner: Owner) -> None:
    admin = {"Authorization": f"Bearer {await _admin_key(service)}"}
    for window in ("month", "day"):
        path, body = f"/v1/keys/{owner.key_id}/budget", {"limit": 500, "window": window}
        (await service.client.put(path, json=body, headers=admin)).raise_for_status()
    (await service.client.get("/v1/keys?limit=5", headers=admin)).raise_for_status()


async def _look_at_pages(service: Service, owner: Owner, key: str) -> None:
    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False, timeout=30) as browser:
        signed_in = await browser.post("/console/sign-in", data={"key": key})
        assert signed_in.status_code == 303
        delivery_id = (await service.client.get("/v1/deliveries?limit=1")).json()["items"][0]["id"]
        filters = "", "?status=given_up", f"?endpoint_id={owner.endpoint_id}"
        deliveries = f"webhooks/{owner.endpoint_id}?status=pending", f"deliveries/{delivery_id}"
        for path in (
            *(f"tasks?{query}" for query in TASK_FILTERS),
            *(f"webhooks{each}" for each in filters),
            *deliveries,
        ):
            (await browser.get(f"/console/{path}")).raise_for_status()


async def _operate(service: Service, owner: Owner) -> None:
    async with service.database.transaction() as (session, _):
        await lock_queued(session, 10)
    endpoint = f"/v1/webhook-endpoints/{owner.endpoint_id}"
    pending = (await service.client.get("/v1/deliveries?limit=1&status=pending")).json()["items"]
    (await service.client.post(f"/v1/deliveries/{pending[0]['id']}/resend")).raise_for_status()
    (await service.client.post(f"{endpoint}/recover", json={"since": "2026-01-01T00:00:00Z"})).raise_for_status()
    await _run(sweep_loop(service.services))
    for change in ({"url": "https://example.com/moved"}, {"disabled": True}, {"disabled": False}):
        (await service.client.patch(endpoint, json=change)).raise_for_status()
    (await service.client.delete(endpoint)).raise_for_status()
    await _run(sweep_loop(service.services))
    (await service.client.get("/readyz")).raise_for_status()
    seen = await scrape(service.client)
    assert (seen("soundpost_database_up"), seen.total("soundpost_due_rows") > 1000) == (1, True)


async def _replay(service: Service) -> None:
    callbacks = service.services.callbacks
    for since in (None, datetime.now(UTC) - timedelta(hours=3)):
        async with aclosing(callbacks.tasks_to_replay(since)) as tasks:
            [task_id] = [await anext(tasks)]
        assert await callbacks.replay(task_id, since, commits=False)


async def _prune(service: Service) -> None:
    await _run(periodic_loop(service.services))
    async with service.database.transaction() as (session, now):
        await Retention(days=20, audit_days=365).erase_batch(session, now)


async def _owner(service: Service) -> Owner:
    """The key of the client, with its endpoint."""
    async with service.database.reads() as session:
        of_tests = select(WebhookEndpoint).join(ApiKey).where(ApiKey.name == "tests")
        endpoint = (await session.scalars(of_tests)).one()
    return Owner(endpoint.api_key_id, endpoint.id)


async def _plans(service: Service, statements: Iterable[Statement]) -> dict[str, str]:
    """The plan of each statement that has one, with the parameters that it was sent with."""
    plans = {}
    async with service.database.reads() as session:
        explain = "EXPLAIN QUERY PLAN" if session.get_bind().dialect.name == "sqlite" else "EXPLAIN"
        connection = await session.connection()
        for sql, parameters in statements:
            if EXPLAINED.match(sql):
                rows = await connection.exec_driver_sql(f"{explain} {sql}", parameters)
                plans[sql] = "\n".join(str(row[-1]) for row in rows)
    return plans


def _scans(sql: str, plan: str) -> bool:
    """Whether a plan reads a growing table whole, or one of its indexes from an end on and without a limit."""
    # What SQLAlchemy calls a table's second name in a statement ends with a number.
    tables = {re.sub(r"_\d+$", "", table) for table in re.findall(r"(?:Seq Scan on|SCAN) (\w+)(?! USING)\b", plan)}
    through_index = re.findall(r"SCAN (\w+) USING", plan) + re.findall(
        r"Index (?:Only )?Scan(?: Backward)? using \w+ on (\w+).*(?!\n +Index Cond)$", plan, re.MULTILINE
    )
    # What is sorted was read to its end, whatever the limit.
    is_sorted = "USE TEMP B-TREE FOR ORDER BY" in plan or re.search(r"-> +Sort ", plan)
    has_limit = ("LIMIT" in sql or "Limit" in plan) and not is_sorted
    return bool(tables & GROWING) or (not has_limit and bool(set(through_index) & GROWING))
