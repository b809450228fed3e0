"""The pages of keys, budgets and the audit log: who sees which, and what admins change there."""

import re
from datetime import timedelta
from html import unescape

import pytest
from sqlalchemy import select, update

from app.auth.audit import record
from app.enums import Priority
from app.models import ApiKey, AuditEntry, Task
from tests.budgets.accounts import account_of, give
from tests.budgets.accounts import key_of as id_of
from tests.console.visiting import HOSTILE, act, browser_of, key_of
from tests.support.api import cancel, create_task
from tests.support.service import Service, serve

ADMINS_ONLY = "/console/keys", "/console/keys/{id}", "/console/audit"


async def test_caller_sees_its_own_budget_and_ledger_and_nothing_of_others(service: Service) -> None:
    await give(service.database, await id_of(service), 100)
    tasks = [await create_task(service.client) for _ in range(3)]
    await cancel(service.client, tasks[0])
    other = await key_of(service, "other")
    async with browser_of(service) as mine, browser_of(service, other) as stranger:
        own, foreign = await mine.get("/console/budget"), await stranger.get("/console/budget")
        refused = [await mine.get(path.format(id=await id_of(service, "other"))) for path in ADMINS_ONLY]
        list_of_tasks = await mine.get("/console/tasks")

    text = _text(own.text)
    for words in ("Limit 100 credits a day", "Spent 0 charged", "Reserved 5 on the way", "Left 95", "−2.5", "released"):
        assert words in text, text
    assert [own.text.count(f'href="/console/tasks/{task["id"]}"') for task in tasks] == [2, 1, 1]
    assert not any(task["id"] in foreign.text for task in tasks)
    assert "Nothing was reserved yet." in foreign.text
    assert "Limit none" in _text(foreign.text)
    assert [page.status_code for page in refused] == [403, 403, 403]
    assert "no scope `admin`" in unescape(refused[0].text)
    assert '/console/keys"' not in list_of_tasks.text
    assert '<form class="row"' not in own.text


async def test_usage_is_told_by_day(service: Service) -> None:
    for _ in range(2):
        await create_task(service.client)
    async with browser_of(service) as browser:
        page = await browser.get("/console/budget")

    [day] = re.findall(r"<td class=\"tight\">(\d{4}-\d\d-\d\d)</td>\s*<td>2</td>", page.text)
    assert day in page.text


async def test_ledger_is_paged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.accounts.pages.PAGE_SIZE", 2)
    ids = [(await create_task(service.client))["id"] for _ in range(5)]
    async with browser_of(service) as browser:
        found, path = [], "/console/budget"
        while path:
            page = await browser.get(path)
            found.append(re.findall('class="id" href="/console/tasks/([0-9a-f]+)"', page.text))
            path = next((unescape(link) for link in re.findall('rel="next" href="([^"]+)"', page.text)), "")
        wrong = [
            await browser.get(f"/console/budget?cursor={cursor}")
            for cursor in ("nonsense", "WyIvY29uc29sZS9idWRnZXQiLCIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsIngiXQ")
        ]

    assert found == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    assert [page.status_code for page in wrong] == [422, 422]


async def test_admin_sees_all_keys_and_gives_budgets(service: Service) -> None:
    await give(service.database, await id_of(service), 2.5)
    await create_task(service.client)
    chief = await key_of(service, "chief", is_admin=True)
    key_id = await id_of(service)
    path = f"/console/keys/{key_id}"
    async with browser_of(service, chief) as admin, browser_of(service) as mine:
        listed, shown = await admin.get("/console/keys"), await admin.get(path)
        forbidden = await act(mine, f"{path}/budget", limit="1000", window="day")
        changed = await act(admin, f"{path}/budget", limit="1500.5", window="month")
        for wrong in ({"limit": "much"}, {"limit": "-1"}, {"limit": "1.0001"}, {"limit": "nan"}, {"window": "year"}):
            refused = await act(admin, f"{path}/budget", **{"limit": "1", "window": "day", **wrong})
            assert refused.status_code == 422, wrong
        unknown = await act(admin, "/console/keys/nothing/budget", limit="1", window="day")
        absent = await admin.get("/console/keys/nothing")
        audit = _text((await admin.get("/console/audit")).text)
        account = await account_of(service.database, key_id)
        removed = await act(admin, f"{path}/budget", window="day")

    assert "2.5 of 2.5 a day, exhausted" in _text(listed.text)
    assert [f">{name}</a>" in listed.text for name in ("tests", "chief")] == [True, True]
    assert "reserved" in shown.text
    assert (forbidden.status_code, unknown.status_code, absent.status_code) == (403, 404, 404)
    assert "The budget is changed." in changed.text
    assert "Limit 1,500.5 credits a month" in _text(changed.text)
    assert 'value="1500.5"' in changed.text
    assert (account.credit_limit, account.window) == (1_500_500, "month")
    assert "chief key.budget_changed limit=1500.5 window=month tests" in audit
    assert "The key has no limit any more." in removed.text


async def test_task_tells_its_priority_its_price_and_that_it_waits_for_its_budget(service: Service) -> None:
    await give(service.database, await id_of(service), 5)
    await create_task(service.client)
    task_id = await service.create_task("urgent rain")
    held_id = await service.create_task("patient rain", hold=True)
    async with service.database.writes.begin() as session:
        await session.execute(update(Task).where(Task.id == task_id).values(priority=Priority.high))
    async with browser_of(service) as browser:
        page, held = [_text((await browser.get(f"/console/tasks/{each}")).text) for each in (task_id, held_id)]
        rows = _text((await browser.get("/console/tasks")).text)

    assert "Priority high" in page
    assert "Price 2.5 credits, reserved Ledger" in page
    assert "Price 2.5 credits, not reserved Ledger" in held
    assert "It waits for the budget of its key." in held
    assert "It waits for the budget" not in page
    assert "queued waits for its budget patient rain" in rows
    assert "high priority urgent rain" in rows


async def test_states_of_keys_are_told_in_words(service: Service) -> None:
    chief = await key_of(service, "chief", is_admin=True)
    for name in ("late", "gone", "busy"):
        await key_of(service, name)
    async with service.database.transaction() as (session, now):
        ago = now - timedelta(hours=3)
        for name, columns in (("late", {"expires_at": ago}), ("gone", {"revoked_at": ago}), ("busy", {"weight": 7})):
            await session.execute(update(ApiKey).where(ApiKey.name == name).values(columns))
        await session.execute(update(ApiKey).where(ApiKey.name == "busy").values(scopes="read", last_used_at=ago))
    async with browser_of(service, chief) as browser:
        text = _text((await browser.get("/console/keys")).text)

    assert "✕ expired 3 h ago late" in text
    assert "✕ revoked 3 h ago gone" in text
    assert "✓ works busy read 7 no limit 3 h ago never" in text
    assert "✓ works chief submit, read, webhooks, admin 1 no limit" in text


async def test_audit_log_is_paged_newest_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.accounts.pages.PAGE_SIZE", 2)
    chief = await key_of(service, "chief", is_admin=True)
    async with service.database.transaction() as (session, now):
        for number in range(3):
            record(session, now, "operator", f"key.changed{number}", "f" * 32, weight=number)
            await session.flush()
    async with service.database.reads() as session:
        count = len((await session.scalars(select(AuditEntry.id))).all())
    async with browser_of(service, chief) as browser:
        found, path = [], "/console/audit"
        while path:
            page = await browser.get(path)
            found += re.findall(r"key\.changed\d", page.text)
            path = next((unescape(link) for link in re.findall('rel="next" href="([^"]+)"', page.text)), "")

    assert found == ["key.changed2", "key.changed1", "key.changed0"]
    assert count >= 3
    assert "operator" in page.text


async def test_nothing_that_somebody_named_is_markup(service: Service) -> None:
    chief = await key_of(service, "chief", is_admin=True)
    async with service.database.transaction() as (session, now):
        await session.execute(update(ApiKey).where(ApiKey.name == "tests").values(name=HOSTILE))
        record(session, now, HOSTILE[:32], "key.renamed", HOSTILE[:32], name=HOSTILE)
    key_id = await id_of(service, HOSTILE)
    async with browser_of(service, chief) as browser:
        pages = [await browser.get(path.format(id=key_id)) for path in ADMINS_ONLY]

    assert [page.status_code for page in pages] == [200, 200, 200]
    assert not any("<script>alert" in page.text or "<img src=x" in page.text for page in pages)
    assert all(HOSTILE in unescape(page.text) for page in pages)


async def test_pages_lead_back_behind_a_prefix(database_url: str) -> None:
    async with serve(database_url, base_url="http://gateway.example/sound") as service:
        key_id = await id_of(service)
        async with browser_of(service, await key_of(service, "chief", is_admin=True)) as browser:
            cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
            page = await browser.get(f"/console/keys/{key_id}", headers={"Cookie": cookie})
            token = re.findall('name="csrf_token" value="([^"]+)"', page.text)[0]
            [action] = re.findall('action="([^"]+/budget)"', page.text)
            form = {"csrf_token": token, "limit": "5", "window": "day"}
            answer = await browser.post(action.removeprefix("/sound"), data=form, headers={"Cookie": cookie})

    links = re.findall('(?:href|action)="(/[^"]+)"', page.text)
    assert [link for link in links if not link.startswith("/sound/console")] == []
    assert answer.headers["location"] == f"/sound/console/keys/{key_id}"


def _text(page: str) -> str:
    """What a page says, in one line."""
    return unescape(" ".join(re.sub("<[^>]+>", " ", page).split())).replace(" ,", ",")
