"""Behind a proxy that serves us under a path, pages, forms, files and streams are found in a browser."""

import shutil
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.async_api import expect
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.console.conftest import Window
from tests.support.processes import free_port
from tests.support.servers import serving
from tests.support.service import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_pages_work_below_a_path(window: Window, migrated_sqlite: Path, tmp_path: Path) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "soundpost.db")
    port, page = free_port(), window.page
    window.url = f"http://127.0.0.1:{port}/sound"
    async with (
        serve(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", base_url=window.url) as service,
        serving(_proxy(service.anonymous, port)),
    ):
        await window.sign_in()
        await service.create_task("soft rain")
        await page.get_by_role("link", name="soft rain").wait_for()
        await expect(page.locator("#live")).to_contain_text("Live, as of")
        await page.get_by_role("navigation", name="Console").get_by_role("link", name="Webhooks").click()
        await page.get_by_role("heading", name="Your webhooks").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_text("You are signed out.").wait_for()
        await window.open("/docs")
        await page.get_by_text("/v1/webhook-endpoints/{endpoint_id}/recover").wait_for()


def _proxy(service: httpx.AsyncClient, port: int) -> uvicorn.Server:
    """A server that passes what is below `/sound` on, and knows nothing else."""

    async def pass_on(request: Request) -> Response:
        url = request.url.path.removeprefix("/sound") + (f"?{request.url.query}" if request.url.query else "")
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        sent = service.build_request(request.method, url, headers=headers, content=await request.body())
        answer = await service.send(sent, stream=True)
        passed = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        passed.raw_headers = answer.headers.raw
        return passed

    app = Starlette(routes=[Route("/sound/{path:path}", pass_on, methods=["GET", "POST"])])
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)
