"""`/docs` shows the whole interface by files of the service alone."""

import pytest
from playwright.async_api import Route

from tests.console.conftest import SCREENSHOTS, Window
from tests.support.settings import KEY

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_docs_need_nothing_from_elsewhere(window: Window) -> None:
    elsewhere: list[str] = []

    async def refuse(route: Route) -> None:
        if route.request.url.startswith((window.url, "data:")):
            await route.continue_()
        else:
            elsewhere.append(route.request.url)
            await route.abort()

    await window.context.route("**", refuse)
    await window.open("/docs")

    await window.page.get_by_role("heading", name="Soundpost").wait_for()
    await window.page.get_by_text("/v1/webhook-endpoints/{endpoint_id}/recover").wait_for()
    await window.page.locator(".auth-wrapper .authorize").first.click()
    await window.page.locator(".auth-container input").fill(KEY)
    await window.page.locator(".auth-btn-wrapper .authorize").click()
    await window.page.locator(".auth-btn-wrapper .btn-done").click()
    await window.page.get_by_text("Get your usage").first.click()
    await window.page.get_by_role("button", name="Try it out").click()
    await window.page.get_by_role("button", name="Execute").click()
    await window.page.locator(".live-responses-table").get_by_text("refunded").wait_for()
    await window.page.screenshot(path=SCREENSHOTS / "docs-desk-light.png")
    assert elsewhere == []
