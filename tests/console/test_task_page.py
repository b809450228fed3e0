"""The page of a task in a browser, in every state."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.console import stories
from tests.console.conftest import Window, watch
from tests.support.service import Service, serve_with_sandbox
from tests.support.settings import KEY
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def opened(window: Window, task_id: str, *, as_admin: bool = False) -> None:
    await window.sign_in(window.admin_key) if as_admin else await window.sign_in()
    await window.open(f"/console/tasks/{task_id}")
    await window.page.get_by_role("heading", level=1).wait_for()


async def test_queued_and_held(window: Window, served: Service) -> None:
    task_id = await stories.held(served)
    await opened(window, task_id, as_admin=True)
    await window.page.get_by_text("All submits are held").wait_for()
    await window.page.get_by_text("What to do:").wait_for()
    await window.check("task-held")
    await stories.let_go(served)
    # The page is live.
    await window.page.get_by_text("All submits are held").wait_for(state="detached")


async def test_generating(window: Window, served: Service) -> None:
    await opened(window, await stories.generating(served))
    await window.page.get_by_text("The upstream works on it.").wait_for()
    await window.page.get_by_text("applied").last.click()
    await window.page.get_by_text("What was read from it").wait_for()
    await window.check("task-generating")


async def test_unconfirmed(window: Window, served: Service) -> None:
    await opened(window, await stories.unconfirmed(served), as_admin=True)
    await window.page.get_by_text("Resolve", exact=True).click()
    await window.page.get_by_label("The upstream's id").fill("up-found")
    await window.check("task-unconfirmed")


async def test_failed_with_hostile_words_and_failing_webhooks(window: Window, served: Service) -> None:
    await opened(window, await stories.failed(served))
    for entry in await window.page.locator("summary").all():
        await entry.click()
    await window.page.get_by_text("HTTP 500").first.wait_for()
    await window.check("task-failed")


async def test_given_up(window: Window, served: Service) -> None:
    await opened(window, await stories.expired(served), as_admin=True)
    await window.page.get_by_text("It was given up, not refused").wait_for()
    await window.check("task-given-up")


async def test_succeeded_with_sounds_and_failing_webhooks(
    browser: Browser, migrated_sqlite: Path, tmp_path: Path
) -> None:
    database = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with serve_with_sandbox(database, tmp_path, sandbox={"delay": 1}) as service:
        # Nobody listens there.
        endpoint = {"url": "http://127.0.0.1:9/hook"}
        (await service.client.post("/v1/webhook-endpoints", json=endpoint)).raise_for_status()
        task = await service.archived("rain on a tin roof", grab_lyrics=True, metadata={"scene": "attic"})
        await eventually(lambda: has_failed(service, task["id"]), 20)
        async with window_of(browser, service) as window:
            await opened(window, task["id"])
            # In the shadow of the player's element.
            for number in range(2):
                await window.page.locator(f"#wave-{number} canvas").first.wait_for()
            await window.page.get_by_text("The timeline as a table").click()
            await window.page.locator("summary", has_text="task.succeeded").click()
            assert window.problems == []
            await window.check("task-succeeded")
            # To take its pictures the browser's driver puts styles into the shadows, which the policy refuses too.
            window.problems.clear()
            plays = "() => { const a = document.querySelector('audio'); a.muted = true; return a.play() }"
            await window.page.evaluate(plays)
            played = "document.querySelector('audio').currentTime > 0.3"
            await eventually(lambda: window.page.evaluate(played), 10)
            assert window.problems == []


async def has_failed(service: Service, task_id: str) -> bool:
    found = (await service.client.get(f"/v1/deliveries?task_id={task_id}")).json()["items"]
    return any(delivery["attempts"] for delivery in found)


@asynccontextmanager
async def window_of(browser: Browser, service: Service) -> AsyncIterator[Window]:
    context = await browser.new_context(reduced_motion="reduce")
    page = await context.new_page()
    window = Window(context, page, str(service.client.base_url).rstrip("/"), KEY)
    watch(page, window.problems)
    yield window
    await context.close()


async def test_everything_can_be_done_by_keyboard(window: Window, served: Service) -> None:
    task_id = await stories.unconfirmed(served)
    await opened(window, task_id, as_admin=True)
    keyboard = window.page.keyboard

    async def reach(name: str) -> None:
        for _ in range(30):
            await keyboard.press("Tab")
            if name == await window.page.evaluate("document.activeElement.textContent.trim()"):
                return
        raise AssertionError(f"Tab does not lead to {name}")

    await reach("Cancel")
    # A disclosure opens by Enter, and its button comes next.
    await keyboard.press("Enter")
    await window.page.get_by_text("may charge for it all the same").wait_for()
    await reach("Cancel the task")
    await keyboard.press("Enter")

    await window.page.get_by_text("The task is canceled.").wait_for()
    assert (await served.task(task_id))["status"] == "canceled"


async def test_disclosures_and_typed_text_survive_updates(window: Window, served: Service) -> None:
    task_id = await stories.unconfirmed(served)
    await opened(window, task_id, as_admin=True)
    await window.page.locator("summary", has_text="Resolve").click()
    await window.page.get_by_label("The upstream's id").fill("up-typed")
    before = await window.page.locator(".took").last.inner_text()

    async def is_updated() -> bool:
        return await window.page.locator(".took").last.inner_text() != before

    await eventually(is_updated, 20)

    assert await window.page.get_by_label("The upstream's id").input_value() == "up-typed"
    assert await window.page.get_by_role("button", name="Resolve the task").is_visible()


async def test_page_needs_no_scripts(browser: Browser, served: Service) -> None:
    task_id = await served.create_task("rain")
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    url = str(served.client.base_url).rstrip("/")
    await page.goto(f"{url}/console/sign-in")
    await page.get_by_label("API key").fill(KEY)
    await page.get_by_role("button", name="Sign in").click()
    await page.goto(f"{url}/console/tasks/{task_id}")
    await page.locator("summary", has_text="Order again").click()
    await page.get_by_role("button", name="Order a new task").click()
    await page.get_by_text("This is the new task.").wait_for()
    await page.locator("summary", has_text="Cancel").click()
    await page.get_by_role("button", name="Cancel the task").click()
    await page.get_by_text("The task is canceled.").wait_for()
    await context.close()

    assert (await served.task(page.url.rsplit("/", 1)[1]))["status"] == "canceled"


async def test_form_that_orders_again_stays_one_form_through_updates(window: Window, served: Service) -> None:
    await opened(window, await stories.unconfirmed(served))
    before = await window.page.locator(".took").last.inner_text()
    key = await window.page.locator("[name=order_key]").input_value()

    async def is_updated() -> bool:
        return await window.page.locator(".took").last.inner_text() != before

    await eventually(is_updated, 10)

    # Sent once more, because the answer was slow, it orders nothing more.
    assert await window.page.locator("[name=order_key]").input_value() == key
