"""Budgets and ledgers by REST: a key's own, and all of them for admins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.budgets.ledger import set_budget
from app.enums import EntryKind, Window
from app.models import ApiKey, AuditEntry, Budget, LedgerEntry
from app.web.pagination import encode_cursor
from tests.budgets.accounts import key_of
from tests.support.clock import MORNING
from tests.support.rows import add_key
from tests.support.service import Service, client_with_key

NO_BUDGET = {"limit": None, "window": None, "spent": 0, "reserved": 0, "left": None, "resets_at": None}
UNKNOWN = "0" * 32
# Each with where the error is.
NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({}, "#/limit"),
    ({"limit": 5, "window": "week"}, "#/window"),
    ({"limit": -0.001, "window": "day"}, "#/limit"),
    ({"limit": 0.0001, "window": "day"}, "#/limit"),
    ({"limit": 999_999_999.9999, "window": "day"}, "#/limit"),
    ({"limit": 1_000_000_000.001, "window": "day"}, "#/limit"),
    ({"limit": 10**400, "window": "day"}, "#/limit"),
    ({"limit": "5", "window": "day"}, "#/limit"),
    ({"limit": True, "window": "day"}, "#/limit"),
    ({"limit": 5, "window": "day", "spent": 0}, "#/spent"),
]


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key of an admin."""
    async with await client_with_key(service, "admin", is_admin=True) as client:
        yield client


async def test_key_without_a_budget_is_told_so(service: Service) -> None:
    assert await _budget(service) == NO_BUDGET


@pytest.mark.parametrize("window", ["day", "month"])
async def test_budget_is_told_in_credits(service: Service, admin: httpx.AsyncClient, window: str) -> None:
    key_id = await key_of(service)
    before = datetime.now(UTC)
    given = await admin.put(f"/v1/keys/{key_id}/budget", json={"limit": 10.125, "window": window})
    await _use(service, key_id, spent=2500, reserved=7501)

    read = await _budget(service)

    assert (given.status_code, given.json()["left"]) == (200, 10.125)
    assert {**read, "resets_at": ""} == {
        "limit": 10.125,
        "window": window,
        "resets_at": "",
        "spent": 2.5,
        "reserved": 7.501,
        "left": 0.124,
    }
    resets_at = datetime.fromisoformat(read["resets_at"])
    assert before < resets_at <= before + timedelta(days=1 if window == "day" else 31)
    assert resets_at.time().isoformat() == "00:00:00"
    assert window == "day" or resets_at.day == 1


async def test_window_that_is_over_reads_as_a_new_one(service: Service) -> None:
    key_id = await key_of(service)
    now = datetime.now(UTC)
    async with service.database.writes.begin() as session:
        await set_budget(session, key_id, 5000, Window.day, now - timedelta(days=1))
    await _use(service, key_id, spent=2500, reserved=2500)

    read = await _budget(service)

    assert (read["spent"], read["reserved"], read["left"]) == (0, 0, 5)
    assert datetime.fromisoformat(read["resets_at"]) > now


async def test_nothing_is_left_where_more_is_used_than_the_limit(service: Service, admin: httpx.AsyncClient) -> None:
    key_id = await key_of(service)
    for limit in (5, 1):
        await admin.put(f"/v1/keys/{key_id}/budget", json={"limit": limit, "window": "day"})
        await _use(service, key_id, spent=2500)

    read = await _budget(service)

    assert (read["limit"], read["spent"], read["left"]) == (1, 2.5, 0)


async def test_budget_is_changed_and_taken_away_by_an_admin(service: Service, admin: httpx.AsyncClient) -> None:
    key_id = await key_of(service)
    found = []
    for body in ({"limit": 0, "window": "month"}, {"limit": 1_000_000_000, "window": "day"}, {"limit": None}):
        answer = await admin.put(f"/v1/keys/{key_id}/budget", json=body)
        found.append((answer.status_code, answer.json()["limit"], answer.json()["window"]))
        assert answer.json() == await _budget(service)

    async with service.database.reads() as session:
        of_budgets = select(AuditEntry).where(AuditEntry.action == "key.budget_changed")
        audited = (await session.scalars(of_budgets.order_by(AuditEntry.created_at, AuditEntry.id))).all()
        [admin_id] = await session.scalars(select(ApiKey.id).where(ApiKey.name == "admin"))
    assert found == [(200, 0, "month"), (200, 1_000_000_000, "day"), (200, None, None)]
    assert [(entry.actor, entry.action, entry.target, entry.detail) for entry in audited] == [
        (admin_id, "key.budget_changed", key_id, {"limit": limit, "window": window}) for _, limit, window in found
    ]


async def test_nonsense_is_refused_and_changes_nothing(service: Service, admin: httpx.AsyncClient) -> None:
    path = f"/v1/keys/{await key_of(service)}/budget"

    for body, pointer in NONSENSE:
        answer = await admin.put(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), body

    assert await _budget(service) == NO_BUDGET


async def test_limit_is_kept_to_the_thousandth(service: Service, admin: httpx.AsyncClient) -> None:
    path = f"/v1/keys/{await key_of(service)}/budget"

    for limit in (0.001, 0.1 + 0.2, 1.001, 999_999_999.999, 123_456_789.123):
        answer = await admin.put(path, json={"limit": limit, "window": "day"})
        assert answer.json()["limit"] == (await _budget(service))["limit"] == round(limit, 3)


async def test_only_admins_see_keys_and_give_budgets(service: Service, admin: httpx.AsyncClient) -> None:
    key_id = await key_of(service)
    body = {"limit": 5, "window": "day"}
    refused = [
        await service.client.get("/v1/keys"),
        *[await service.client.put(f"/v1/keys/{each}/budget", json=body) for each in (key_id, UNKNOWN)],
    ]
    unknown = [await admin.put(f"/v1/keys/{each}/budget", json=body) for each in (UNKNOWN, "x", "%00", "a" * 400)]

    assert {(answer.status_code, answer.json()["type"]) for answer in refused} == {(403, "/problems/not-permitted")}
    assert "`admin`" in refused[0].json()["detail"]
    assert {answer.status_code for answer in unknown} == {404}
    assert await _budget(service) == NO_BUDGET


async def test_keys_are_listed_with_their_budgets_and_without_secrets(
    service: Service, admin: httpx.AsyncClient
) -> None:
    own = await key_of(service)
    await admin.put(f"/v1/keys/{own}/budget", json={"limit": 5, "window": "day"})
    async with service.database.writes.begin() as session:
        dates = {"expires_at": MORNING, "last_used_at": MORNING, "revoked_at": MORNING}
        session.add(ApiKey(name="old", key_hash="secret", scopes="read,submit", weight=3, created_at=MORNING, **dates))

    first = (await admin.get("/v1/keys?limit=2")).raise_for_status()
    rest = (await admin.get(first.links["next"]["url"])).raise_for_status().json()
    keys = {key["name"]: key for key in [*first.json()["items"], *rest["items"]]}

    assert (len(first.json()["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)
    assert keys["tests"]["budget"] == await _budget(service)
    assert keys["admin"]["scopes"] == ["submit", "read", "webhooks", "admin"]
    shown = dict.fromkeys(("created_at", "expires_at", "last_used_at", "revoked_at"), "2026-03-01T08:00:00Z")
    assert {**keys["old"], "id": ""} == {
        "id": "",
        "name": "old",
        "scopes": ["submit", "read"],
        "weight": 3,
        "budget": None,
        **shown,
    }


async def test_ledger_is_listed_newest_first_and_page_by_page(service: Service) -> None:
    key_id = await key_of(service)
    await _fill_ledger(service, key_id, 5)
    url, pages = "/v1/ledger?limit=2", []
    while url:
        answer = (await service.client.get(url)).raise_for_status()
        pages.append(answer.json()["items"])
        url = answer.links.get("next", {}).get("url", "")
        # What is written meanwhile is on none of the older pages.
        await _fill_ledger(service, key_id, 1, first=100 + len(pages))

    found = [entry for page in pages for entry in page]
    assert [entry["task_id"] for entry in found] == [f"{number:032x}" for number in (5, 4, 3, 2, 1)]
    assert found[0] == {
        "id": found[0]["id"],
        "at": "2026-03-01T08:00:02Z",
        "task_id": f"{5:032x}",
        "kind": "reserve",
        "credits": -2.5,
        "balance": -12.5,
    }


async def test_ledger_is_listed_for_a_range_of_time(service: Service) -> None:
    await _fill_ledger(service, await key_of(service), 6)

    async def numbers(**query: str) -> list[int]:
        items = (await service.client.get("/v1/ledger", params=query)).raise_for_status().json()["items"]
        return [int(item["task_id"], 16) for item in items]

    assert await numbers(since="2026-03-01T08:00:02Z") == [6, 5, 4]
    assert await numbers(until="2026-03-01T08:00:01Z") == [1]
    assert await numbers(since="2026-03-01T09:00:01+01:00", until="2026-03-01T08:00:02Z") == [3, 2]
    assert await numbers(since="2026-03-02T00:00:00Z", until="2026-03-01T00:00:00Z") == []
    assert await numbers(since="0001-01-01T00:00:00+14:00", until="9999-12-31T23:59:59-14:00") == [6, 5, 4, 3, 2, 1]


async def test_ledger_of_another_key_is_for_admins(service: Service, admin: httpx.AsyncClient) -> None:
    own, other = await key_of(service), await add_key(service.database, "other")
    await _fill_ledger(service, other, 2)

    assert (await service.client.get("/v1/ledger")).json()["items"] == []
    assert len((await admin.get(f"/v1/ledger?key={other}")).json()["items"]) == 2
    assert (await admin.get("/v1/ledger")).json()["items"] == []
    assert (await service.client.get(f"/v1/ledger?key={own}")).json()["items"] == []
    assert [(await service.client.get(f"/v1/ledger?key={each}")).status_code for each in (other, UNKNOWN)] == [403, 403]
    assert (await admin.get(f"/v1/ledger?key={UNKNOWN}")).status_code == 404


async def test_cursor_that_was_not_given_out_is_refused(service: Service) -> None:
    for number in ("x", "-1", "1.5", "²", "9" * 19, ""):
        cursor = encode_cursor("/v1/ledger", "2026-03-01T08:00:00+00:00", number)
        answer = await service.client.get("/v1/ledger", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/query/cursor"), number


async def test_two_budgets_at_once_are_given_one_after_the_other(service: Service, admin: httpx.AsyncClient) -> None:
    key_id = await key_of(service)
    limits = [1, 2, 3, 4, 5, 6]

    answers = await asyncio.gather(
        *(admin.put(f"/v1/keys/{key_id}/budget", json={"limit": limit, "window": "day"}) for limit in limits)
    )

    assert [answer.json()["limit"] for answer in answers] == limits
    assert (await _budget(service))["limit"] in limits


async def _budget(service: Service) -> dict[str, Any]:
    read: dict[str, Any] = (await service.client.get("/v1/budget")).raise_for_status().json()
    return read


async def _use(service: Service, key_id: str, **used: int) -> None:
    async with service.database.writes.begin() as session:
        await session.execute(update(Budget).where(Budget.api_key_id == key_id).values(used))


async def _fill_ledger(service: Service, key_id: str, count: int, first: int = 1) -> None:
    """Reserve for that many tasks, two of them in each second."""
    async with service.database.writes.begin() as session:
        for number in range(first, first + count):
            at = MORNING + timedelta(seconds=number // 2)
            entry = LedgerEntry(api_key_id=key_id, number=number, task_id=f"{number:032x}", kind=EntryKind.reserve)
            entry.credits, entry.balance, entry.created_at = -2500, -2500 * number, at
            session.add(entry)
