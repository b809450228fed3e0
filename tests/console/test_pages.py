"""Every page in a browser: nothing refused, inaccessible or too wide; its pictures are in var/screenshots."""

import pytest

from tests.console.conftest import Window
from tests.support.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="session")


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


async def test_list_of_tasks(window: Window, served: Service) -> None:
    await served.create_task("soft rain on a tin roof")
    await window.sign_in()

    await window.page.get_by_role("link", name="soft rain on a tin roof").wait_for()

    await window.check("tasks")
