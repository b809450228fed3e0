"""Every page in a browser: nothing refused, inaccessible or too wide; its pictures are in var/screenshots."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Route, expect

from app.enums import Charge, ErrorCode, TaskStatus
from app.models import PaceSlot, PeriodicJob
from app.upstream.credits import ROW
from app.upstream.hold import RECHECK
from tests.console.conftest import Window
from tests.console.visiting import add_endpoint, add_failed_delivery
from tests.support.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOUNDS = ["soft rain on a tin roof", "a slow tide over gravel", "a night train far away, with a whistle", "one bell"]
ENDED: list[tuple[TaskStatus, dict[str, Any]]] = [
    (TaskStatus.succeeded, {}),
    (TaskStatus.succeeded, {"model": "V5_5"}),
    (TaskStatus.failed, {"error_code": ErrorCode.content_rejected, "error_message": "sensitive words"}),
    (TaskStatus.canceled, {"charge": Charge.none}),
]
OPEN = TaskStatus.generating, TaskStatus.generating, TaskStatus.unconfirmed, TaskStatus.queued, TaskStatus.queued


@pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
async def _an_hour_of_tasks(served: Service) -> None:
    now = datetime.now(UTC)
    for minute in range(55):
        status, columns = ENDED[0 if minute % 6 else minute % 4]
        began = now - timedelta(minutes=59 - minute, seconds=7)
        ended = {"completed_at": began + timedelta(seconds=31 + minute)}
        labels = {"labels": {"scene": f"attic {minute}"}} if minute % 5 == 0 else {}
        prompt = SOUNDS[minute % len(SOUNDS)]
        await served.add_task(status, now=began, created_at=began, prompt=prompt, **ended, **labels, **columns)
    for number, status in enumerate(OPEN):
        began = now - timedelta(seconds=70 - number * 9)
        await served.add_task(status, now=began, created_at=began, prompt=SOUNDS[number % len(SOUNDS)])


async def _hold(service: Service) -> None:
    async with service.database.transaction() as (session, now):
        at = (now - timedelta(minutes=12)).isoformat()
        hold = {"reason": "no_credits", "since": at, "message": "Insufficient credits"}
        session.add(PeriodicJob(name=RECHECK, attempts=0, due_at=now + timedelta(hours=1), detail=hold))
        look = {"at": at, "credits": "0.4", "charged": 0}
        # A page that was visited before may have looked already.
        await session.merge(PeriodicJob(name=ROW, attempts=0, detail={"known": {**look, "looks": [look]}}))
        for slot in range(7):
            (await session.get_one(PaceSlot, slot)).free_at = now + timedelta(hours=1)


async def _end_hold(service: Service) -> None:
    async with service.database.transaction() as (session, _):
        await session.delete(await session.get_one(PeriodicJob, RECHECK))


async def test_sign_in_and_out(window: Window) -> None:
    await window.open("/console")
    await window.check("sign-in")
    await window.sign_in()
    assert window.page.url == f"{window.url}/console/tasks"
    [cookie] = [each for each in await window.context.cookies() if each["name"] == "soundpost"]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/console")

    await window.page.get_by_role("button", name="Sign out").click()

    await window.page.get_by_role("status").get_by_text("You are signed out.").wait_for()
    assert await window.context.cookies() == []


async def test_list_of_tasks_is_live(window: Window, served: Service) -> None:
    await window.sign_in(window.admin_key)
    await expect(window.page.locator("#live")).to_contain_text("Live, as of")
    task_id = await served.create_task("a fresh sound <b>with</b> tags", metadata={"scene": "cellar"})

    row = window.page.get_by_role("row").filter(has=window.page.get_by_role("link", name="a fresh sound <b>with</b>"))
    await expect(row).to_contain_text("queued")
    (await served.client.post(f"/v1/tasks/{task_id}/cancel")).raise_for_status()
    await expect(row).to_contain_text("canceled")
    await _hold(served)
    await expect(window.page.get_by_role("status")).to_contain_text("No task is submitted: no credits", timeout=10_000)
    await expect(window.page.locator("#strip")).to_contain_text("7 of 20", timeout=10_000)

    await window.check("tasks")
    await _end_hold(served)
    await expect(window.page.locator("#strip")).to_contain_text("going out", timeout=10_000)


async def test_page_is_live_although_a_script_comes_late(window: Window) -> None:
    async def come_late(route: Route) -> None:
        await asyncio.sleep(1)
        await route.continue_()

    await window.page.route("**/hx-sse.min.js", come_late)
    await window.sign_in()

    await expect(window.page.locator("#live")).to_contain_text("Live, as of", timeout=10_000)


async def test_open_page_says_that_its_session_is_over(window: Window, served: Service) -> None:
    await window.sign_in()
    await expect(window.page.locator("#live")).to_contain_text("Live, as of")
    await window.context.clear_cookies()

    # As a stream does after a quarter of an hour, or where its key is revoked: then the page asks again.
    for _, subscription in served.services.wakeups.subscriptions():
        subscription.close()

    await window.page.get_by_text("This page is not live any more").wait_for()
    await window.page.get_by_role("link", name="Sign in again").click()
    await window.page.get_by_label("API key").wait_for()


async def test_filters_are_in_the_url_and_work_by_keyboard(window: Window) -> None:
    await window.sign_in()
    await window.page.keyboard.press("Tab")
    await expect(window.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await window.page.keyboard.press("Enter")
    await expect(window.page.locator("main")).to_be_focused()
    await window.page.get_by_role("combobox", name="State").focus()
    await window.page.keyboard.type("failed")
    await window.page.get_by_role("button", name="Filter").press("Enter")
    await window.page.wait_for_url("**/console/tasks?status=failed")

    await window.check("tasks-filtered")


async def test_failed_webhooks_are_sent_again(window: Window, served: Service) -> None:
    await add_endpoint(served, url="https://quiet.example/sounds", description="Staging", disabled=True)
    endpoint_id = await add_endpoint(
        served,
        url="https://shop.example/hooks/sounds?region=north-west",
        headers={"Authorization": "Bearer 1", "X-Tenant": "blue"},
        rate="10/1",
    )
    await add_failed_delivery(served, endpoint_id)
    page = window.page
    await window.sign_in(window.admin_key)
    await page.get_by_role("navigation", name="Console").get_by_role("link", name="Webhooks").click()
    await page.get_by_role("heading", name="Webhooks of all keys").wait_for()
    await window.check("webhooks")
    await page.get_by_role("link", name="https://shop.example").click()
    await page.get_by_role("heading", name="https://shop.example").wait_for()
    await page.get_by_text("Replace the headers").first.click()
    await window.check("endpoint")
    await page.get_by_role("link", name="webhook.test").click()
    await page.get_by_role("cell", name="Service Unavailable").wait_for()
    await window.check("delivery")

    await page.get_by_role("button", name="Send again now").click()

    await page.get_by_role("status").get_by_text("The delivery is due now.").wait_for()
    await expect(page.locator(".facts")).to_contain_text("pending")


async def test_admin_gives_a_budget_by_keyboard(window: Window, served: Service) -> None:
    page = window.page
    await window.sign_in(window.admin_key)
    await page.get_by_role("navigation", name="Console").get_by_role("link", name="Keys").click()
    await page.get_by_role("heading", name="Keys").wait_for()
    await window.check("keys")
    await page.get_by_role("link", name="tests", exact=True).click()
    await page.get_by_label("Limit in credits").focus()
    await page.keyboard.type("40")
    await page.keyboard.press("Tab")
    await page.keyboard.type("m")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.get_by_role("status").get_by_text("The budget is changed.").wait_for()
    await served.create_task("a sound on the bill", hold=True)
    await page.reload()
    await expect(page.locator(".strip")).to_contain_text("40 credits a month")
    await page.get_by_role("cell", name="reserved").first.wait_for()
    await window.check("key")
    await page.get_by_role("navigation", name="Console").get_by_role("link", name="Audit").click()
    await page.get_by_role("cell", name="key.budget_changed").first.wait_for()
    await window.check("audit")


async def test_caller_sees_its_budget_without_scripts(window: Window, browser: Browser) -> None:
    await window.sign_in()
    await window.page.get_by_role("navigation", name="Console").get_by_role("link", name="Budget").click()
    await window.page.get_by_role("heading", name="Your budget").wait_for()
    await window.check("budget")
    context = await browser.new_context(java_script_enabled=False, storage_state=await window.context.storage_state())
    page = await context.new_page()
    await page.goto(f"{window.url}/console/budget")
    await expect(page.get_by_role("table", name="Ledger")).to_be_visible()
    await context.close()


async def test_errors_are_pages(window: Window) -> None:
    await window.sign_in()
    await window.open("/console/tasks/nothing")
    await window.page.get_by_role("heading", name="There is nothing here.").wait_for()
    await window.check("error")

    assert len(window.problems) == 1
    assert "404" in window.problems.pop()
