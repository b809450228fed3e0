"""The audit log: what keys and operators change is written down with it, for admins to read, and stays as it is."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from app.auth.api_keys import OVERLAP, change_key, create_key, revoke_key, rotate_key
from app.auth.audit import OPERATOR, record
from app.auth.configured_keys import insert_configured_keys
from app.enums import TaskStatus
from app.models import ApiKey, AuditEntry
from app.retention import Retention
from tests.console.visiting import act, add_endpoint, add_failed_delivery, browser_of, key_of
from tests.support.api import Json
from tests.support.clock import MORNING
from tests.support.service import Service, client_with_key
from tests.support.settings import KEY, OTHER_KEY

URL = "https://receiver.example/hook?token=canary-in-the-query"
HOUR = timedelta(hours=1)


async def test_what_an_operator_does_to_keys_is_written_down(service: Service) -> None:
    async with service.database.transaction() as (session, now):
        await create_key(session, "shop", now, weight=3)
        key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "shop"))).one()
        await change_key(session, key_id, now, scopes="read", weight=3, expires_at=now + HOUR)
        await change_key(session, key_id, now, weight=3)
        await rotate_key(session, key_id, now, OVERLAP)
        await revoke_key(session, key_id, now)
        assert not await revoke_key(session, key_id, now)

    entries = [each for each in reversed(await _entries(service)) if each["target"] == key_id]
    assert [each["action"] for each in entries] == ["key.created", "key.changed", "key.rotated", "key.revoked"]
    assert {each["actor"] for each in entries} == {"operator"}
    terms = {"scopes": ["submit", "read", "webhooks"], "weight": 3, "expires_at": None}
    assert entries[0]["detail"] == {"name": "shop", **terms}
    # Only what is new.
    assert entries[1]["detail"] == {"scopes": ["read"], "expires_at": (now + HOUR).isoformat()}


async def test_keys_that_a_start_adds_revokes_or_replaces_are_written_down_once(service: Service) -> None:
    for configured in (f"tests:{OTHER_KEY}", f"tests:{OTHER_KEY}", "", "", f"tests:{OTHER_KEY}"):
        await insert_configured_keys(service.database, configured)

    entries = [each for each in reversed(await _entries(service)) if each["detail"].get("by") == "SOUNDPOST_API_KEYS"]
    assert [each["action"] for each in entries] == ["key.created", "key.rotated", "key.revoked", "key.restored"]
    assert len({each["target"] for each in entries}) == 1


async def test_what_a_caller_administers_is_written_down_without_secrets(service: Service) -> None:
    client, task = service.client, await service.add_task(TaskStatus.succeeded)
    endpoint = (await client.post("/v1/webhook-endpoints", json={"url": URL})).json()["id"]
    path, before = f"/v1/webhook-endpoints/{endpoint}", len(await _entries(service))
    await client.patch(path, json={"description": "canary-in-the-description"})
    secrets = [
        (await client.post(each)).json()["secret"] for each in (f"{path}/rotate-secret", "/v1/webhook-secret/rotate")
    ]
    await client.post(f"{path}/recover", json={"since": "2026-01-01T00:00:00Z"})
    await client.delete(path)
    await client.delete(f"/v1/tasks/{task.id}")
    # What is read, ordered and canceled is no administration.
    await client.post(f"/v1/tasks/{await service.create_task()}/cancel")
    await client.get("/v1/webhook-endpoints")

    entries = (await _entries(service))[: -before or None]
    key_id = task.api_key_id
    assert [(each["action"], each["actor"], each["target"]) for each in reversed(entries)] == [
        ("endpoint.changed", key_id, endpoint),
        ("endpoint.secret_rotated", key_id, endpoint),
        ("key.secret_rotated", key_id, key_id),
        ("endpoint.recovered", key_id, endpoint),
        ("endpoint.deleted", key_id, endpoint),
        ("task.deleted", key_id, task.id),
    ]
    assert entries[-1]["detail"] == {"fields": ["description"]}
    stored_entries = json.dumps(await _entries(service))
    assert [each for each in (*secrets, "canary", KEY) if each in stored_entries] == []


async def test_what_fails_is_not_written_down(service: Service) -> None:
    before = await _entries(service)
    task = await service.add_task(TaskStatus.queued)

    refused = await service.client.delete(f"/v1/tasks/{task.id}")
    invalid = await service.client.post("/v1/webhook-endpoints", json={"url": "http://10.0.0.1/"})

    assert (refused.status_code, invalid.status_code) == (409, 422)
    assert await _entries(service) == before


async def test_admin_who_acts_for_another_key_is_named(service: Service) -> None:
    key = await key_of(service, "on call", is_admin=True)
    done, open_task = await service.add_task(TaskStatus.succeeded), await service.create_task()
    stuck = await service.add_task(TaskStatus.unconfirmed)
    delivery = await add_failed_delivery(service, await add_endpoint(service))
    before = len(await _entries(service))
    async with browser_of(service, key) as browser:
        await act(browser, f"/console/tasks/{open_task}/order-again", order_key="once")
        await act(browser, f"/console/tasks/{open_task}/order-again", order_key="once")
        await act(browser, f"/console/tasks/{open_task}/cancel")
        await act(browser, f"/console/tasks/{stuck.id}/resolve", status="failed")
        await act(browser, f"/console/tasks/{done.id}/delete")
        await act(browser, f"/console/deliveries/{delivery}/resend")

    entries = list(reversed((await _entries(service))[:-before]))
    async with service.database.reads() as session:
        admin = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "on call"))).one()
    assert [each["action"] for each in entries] == [
        *("task.ordered_again", "task.canceled", "task.resolved", "task.deleted", "delivery.resent"),
    ]
    assert {each["actor"] for each in entries} == {admin}
    assert entries[0]["detail"] == {"instead_of": open_task}
    assert entries[2]["detail"] == {"status": "failed", "upstream_task_id": None}


async def test_order_for_another_key_is_not_stored_without_its_entry(service: Service) -> None:
    task = await service.add_task(TaskStatus.failed)
    async with browser_of(service, await key_of(service, "on call", is_admin=True)) as browser:
        await _execute(service, "ALTER TABLE audit_entries RENAME TO away")
        try:
            refused = await act(browser, f"/console/tasks/{task.id}/order-again", order_key="once")
            tasks = (await service.client.get("/v1/tasks")).json()["items"]
        finally:
            await _execute(service, "ALTER TABLE away RENAME TO audit_entries")
        made = await act(browser, f"/console/tasks/{task.id}/order-again", order_key="once")

    assert (refused.status_code // 100, [each["id"] for each in tasks]) == (5, [task.id])
    assert made.status_code == 200
    assert [each["action"] for each in (await _entries(service))[:1]] == ["task.ordered_again"]


async def test_log_is_read_in_pages_by_admins_alone(service: Service) -> None:
    async with service.database.writes.begin() as session:
        for number in range(5):
            record(session, MORNING + number * HOUR, OPERATOR, "test.made", None, number=number)
    seen: list[int] = []
    async with await client_with_key(service, "admin", is_admin=True) as admin:
        url, params = "/v1/audit", {"limit": "2", "since": "2026-03-01T09:00:00Z", "until": "2026-03-01T12:00:00Z"}
        first = await admin.get(url, params=params)
        following = await admin.get(first.links["next"]["url"])
        wrong = await admin.get(url, params={"cursor": "x"})
    for page in (first, following):
        seen += [each["detail"]["number"] for each in page.json()["items"]]

    assert seen == [3, 2, 1]
    assert following.json()["next_cursor"] is None
    assert {*first.json()["items"][0]} == {"id", "at", "actor", "action", "target", "detail"}
    assert wrong.status_code == 422
    assert (await service.client.get("/v1/audit")).status_code == 403


async def test_entry_cannot_be_changed(service: Service) -> None:
    async with service.database.writes.begin() as session:
        record(session, MORNING, OPERATOR, "test.made")

    for change in ("UPDATE audit_entries SET actor = 'nobody'", "UPDATE audit_entries SET detail = '{}'"):
        with pytest.raises(DBAPIError, match="audit entries are never changed"):
            async with service.database.writes.begin() as session:
                await session.execute(text(change))
    assert {each["actor"] for each in await _entries(service)} == {"operator"}


async def test_old_entries_are_deleted_in_batches_after_their_own_retention(service: Service) -> None:
    now = MORNING + timedelta(days=400)
    async with service.database.writes.begin() as session:
        for _ in range(150):
            record(session, now - timedelta(days=366), OPERATOR, "test.old")
        record(session, now - timedelta(days=364), OPERATOR, "test.young")
    left, more = [], []
    async with service.database.reads() as session:
        counts = [(await Retention(90, days).count(session, now))["audit entries"] for days in (365, 0)]
    for days in (0, 365, 365):
        async with service.database.writes.begin() as session:
            more.append(await Retention(90, days).erase_batch(session, now))
            of_tests = AuditEntry.action.like("test.%")
            left.append(await session.scalar(select(func.count()).select_from(AuditEntry).where(of_tests)))

    assert counts == [150, 0]
    assert (left, more) == ([151, 51, 1], [False, True, False])


async def _execute(service: Service, statement: str) -> None:
    async with service.database.writes.begin() as session:
        await session.execute(text(statement))


async def _entries(service: Service) -> list[Json]:
    async with await client_with_key(service, "reader", is_admin=True) as admin:
        # Its own key is made for this, and no part of what is looked at.
        found: list[Json] = (await admin.get("/v1/audit", params={"limit": 200})).json()["items"]
    return [each for each in found if each["detail"].get("name") != "reader"]
