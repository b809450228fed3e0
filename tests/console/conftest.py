"""A browser in front of the running service: every page that it shows is watched for errors and forbidden contents."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from app.auth.api_keys import create_key
from tests.support.clock import MORNING
from tests.support.service import Service, serve
from tests.support.settings import KEY, ROOT

# Where the tests leave what they saw, to be looked at.
SCREENSHOTS = ROOT / "var" / "screenshots"
SIZES = {"phone": (375, 812), "desk": (1280, 800)}


@dataclass
class Window:
    """A browser window, and what went wrong in it: errors of scripts, requests that failed, what the policy refused."""

    context: BrowserContext
    page: Page
    url: str
    admin_key: str
    problems: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        """Go to a path of the service."""
        await self.page.goto(f"{self.url}{path}")

    async def sign_in(self, key: str = KEY) -> None:
        """Sign in by the form, as somebody would."""
        await self.open("/console/sign-in")
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("button", name="Sign out").wait_for()

    async def check(self, name: str) -> None:
        """
        Look at the page as it is, light and dark, on a phone and on a desk.

        Saves a picture of each, and fails where axe finds a violation or the page is wider than its window.
        """
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for scheme in schemes:
            await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            for size, (width, height) in SIZES.items():
                await self.page.set_viewport_size({"width": width, "height": height})
                # Each scheme and each size once: a look takes most of a second.
                if (scheme == "dark") == (size == "phone"):
                    found = await Axe().run(self.page)
                    assert found.violations_count == 0, f"{name}, {scheme}, {size}:\n{found.generate_report()}"
                wide = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{name} is {wide} px too wide on a {size}"
                await self.page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{scheme}.png", full_page=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, one for all tests of a process."""
    chromium = shutil.which("chromium")
    assert chromium, "the tests of the console need Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service without workers for all tests with a browser: what they see is not of the database's kind."""
    file = tmp_path_factory.mktemp("console") / "soundpost.db"
    shutil.copyfile(migrated_sqlite, file)
    async with serve(f"sqlite+aiosqlite:///{file}") as service:
        yield service


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def admin_key(served: Service) -> str:
    """The key of an admin of the served service."""
    async with served.database.writes.begin() as session:
        return await create_key(session, "on call", MORNING, is_admin=True)


@pytest_asyncio.fixture(loop_scope="session")
async def window(browser: Browser, served: Service, admin_key: str) -> AsyncIterator[Window]:
    """A new window without cookies. At the end of the test nothing may have gone wrong in it."""
    context = await browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(15_000)
    page = await context.new_page()
    window = Window(context, page, str(served.client.base_url).rstrip("/"), admin_key)
    watch(page, window.problems)
    yield window
    await context.close()
    assert window.problems == []


def watch(page: Page, problems: list[str]) -> None:
    """Note everything that goes wrong in a page; what the Content-Security-Policy refuses is an error there too."""

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"{message.type}: {message.text} ({page.url})")

    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(f"script: {error} ({page.url})"))
