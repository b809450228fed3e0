"""Headless Chromium on pages of other origins: the page of docs/browser.md, and one that is not allowed."""

import asyncio
import json
import os
import re
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from playwright.async_api import Page, async_playwright

from tests.support.api import Json, client_of, until_status
from tests.support.processes import Processes, free_port
from tests.support.servers import serving
from tests.support.service import serve
from tests.support.settings import KEY, ROOT

DOCUMENT = ROOT / "docs" / "browser.md"
TYPES = ["task.created", "task.submitted", "task.progressed", "task.succeeded", "clip.archived"]
# What a page of its own sees of a stream.
FOLLOW = """([url, types]) => {
  window.seen = []
  window.source = new EventSource(url)
  for (const type of types) source.addEventListener(type, (event) => seen.push([event.type, event.lastEventId]))
}"""
READ = "([url, headers]) => fetch(url, { headers }).then((answer) => answer.status, () => 'refused')"
LOAD = """(url) => new Promise((resolve) => {
  const audio = new Audio()
  audio.crossOrigin = "anonymous"
  audio.onloadedmetadata = () => resolve("loaded")
  audio.onerror = () => resolve("refused")
  audio.src = url
})"""
STREAM = """(url) => new Promise((resolve) => {
  const source = new EventSource(url)
  source.onopen = () => resolve("open")
  source.onerror = () => resolve(source.readyState === EventSource.CLOSED ? "refused" : "lost")
})"""


def page_of_the_documents(links: Json) -> str:
    """The page of docs/browser.md, as a backend would fill it."""
    [page] = re.findall(r"^```html\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert page.count("LINKS") == 1
    return str(page).replace("LINKS", json.dumps(links).replace("<", "\\u003c"))


def page_server(pages: dict[str, str]) -> AbstractAsyncContextManager[str]:
    """A server of these pages, by their paths, on a port of its own."""

    async def respond(scope: Any, _: Any, send: Any) -> None:
        page = pages.get(scope["path"])
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 404 if page is None else 200, "headers": headers})
        await send({"type": "http.response.body", "body": (page or "").encode()})

    config = uvicorn.Config(respond, port=0, lifespan="off", log_config=None, access_log=False)
    return serving(uvicorn.Server(config))


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A page of Debian's Chromium."""
    found = shutil.which("chromium")
    assert found, "the tests of pages need Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = await browser.new_context()
        context.set_default_timeout(30_000)
        yield await context.new_page()
        await browser.close()


async def test_page_follows_its_task_over_a_restart_and_plays_its_sound(tmp_path: Path) -> None:
    pages = {"/empty": "<!doctype html><title>Empty</title>", "/favicon.ico": ""}
    async with page_server(pages) as origin, chromium() as page:
        with Processes(tmp_path, cors_origins=origin, poll_after="1", poll_every="1", grace="2") as processes:
            database, port = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", free_port()
            sandbox = await processes.sandbox(delay=4)
            service = await processes.serve(database, sandbox.url, port=port)
            answers: list[Any] = []
            page.on("response", lambda answer: answers.append(answer))
            async with client_of(service.url) as client:
                order = {"prompt": "soft rain", "links": {"ttl": 300}, "metadata": {"user": "of the owner"}}
                task = (await client.post("/v1/tasks", json=order)).raise_for_status().json()
                pages["/"] = page_of_the_documents(task["links"])
                await page.goto(f"{origin}/empty")
                await page.evaluate(FOLLOW, [task["links"]["events_url"], TYPES])
                follower = await page.context.new_page()
                follower.on("response", lambda answer: answers.append(answer))
                await follower.goto(origin)
                await follower.get_by_text("generating").wait_for()
                await page.wait_for_function("seen.length >= 2")

                await service.stop()
                await processes.serve(database, sandbox.url, port=port)
                await until_status(client, task["id"], "succeeded")

            await follower.get_by_text("succeeded").wait_for()
            await follower.evaluate("document.querySelector('audio').muted = true")
            await follower.evaluate("document.querySelector('audio').play()")
            await follower.wait_for_function("document.querySelector('audio').currentTime > 0.1")
            half = await follower.evaluate(
                """() => new Promise((resolve) => {
                  const audio = document.querySelector("audio")
                  audio.onseeked = () => resolve(audio.currentTime / audio.duration)
                  audio.currentTime = audio.duration / 2
                })"""
            )
            await page.wait_for_function("source.readyState !== 1 || seen.some(([type]) => type === 'task.succeeded')")
            seen = await page.evaluate("seen")

    audio = [answer for answer in answers if "/audio?" in answer.url]
    streams = [answer for answer in answers if "/events?" in answer.url]
    assert [type_ for type_, _ in seen[:2]] == ["task.created", "task.submitted"]
    assert seen[-1][0] == "task.succeeded"
    # One that began anew would have seen the first events twice.
    assert len({id_ for _, id_ in seen}) == len(seen)
    assert len(streams) >= 4
    assert abs(half - 0.5) < 0.2
    assert {answer.status for answer in audio} == {206}
    assert all("range" in answer.request.headers for answer in audio)
    assert all(answer.url.startswith(origin) or answer.ok for answer in answers)


async def test_commands_of_the_documents_give_links(migrated_sqlite: Path, tmp_path: Path) -> None:
    file = shutil.copyfile(migrated_sqlite, tmp_path / "soundpost.db")
    [commands] = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    async with serve(f"sqlite+aiosqlite:///{file}") as service:
        task_id = await service.create_task()
        names = {
            "URL": str(service.client.base_url).rstrip("/"),
            "KEY": f"Authorization: Bearer {KEY}",
            "TASK": task_id,
        }
        bash = ("bash", "-euc", commands.replace("curl ", "curl --noproxy '*' "))
        run = await asyncio.create_subprocess_exec(*bash, env={**os.environ, **names}, stdout=PIPE)
        said = (await run.communicate())[0].decode()

    ordered, until = json.JSONDecoder().raw_decode(said)
    asked = json.loads(said[until:])
    assert run.returncode == 0
    assert f"/v1/tasks/{ordered['id']}?" in ordered["links"]["task_url"]
    assert (asked["task_url"], asked["audio_urls"]) == (None, [])
    assert f"/v1/tasks/{task_id}/events?" in asked["events_url"]


async def test_browser_shows_a_page_of_a_foreign_origin_the_sound_alone(tmp_path: Path) -> None:
    empty = {"/": "<!doctype html><title>Empty</title>", "/favicon.ico": ""}
    async with page_server(empty) as origin, page_server(empty) as foreign, chromium() as page:
        with Processes(tmp_path, cors_origins=origin) as processes:
            sandbox = await processes.sandbox()
            service = await processes.serve(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", sandbox.url)
            async with client_of(service.url) as client:
                order, wait = {"prompt": "soft rain"}, {"Prefer": "wait=30"}
                task = (await client.post("/v1/tasks", json=order, headers=wait)).raise_for_status().json()
                links = (await client.post(f"/v1/tasks/{task['id']}/links", json={})).raise_for_status().json()
            key = {"Authorization": client.headers["Authorization"]}
            found = {}
            for name, url in (("ours", origin), ("foreign", foreign)):
                await page.goto(url)
                found[name] = [
                    await page.evaluate(READ, [links["task_url"], {}]),
                    await page.evaluate(READ, [f"{links['task_url']}x", {}]),
                    await page.evaluate(READ, [f"{service.url}/v1/usage", key]),
                    await page.evaluate(STREAM, links["events_url"]),
                    await page.evaluate(LOAD, links["audio_urls"][0]),
                ]

    assert found["ours"] == [200, 401, 200, "open", "loaded"]
    assert found["foreign"] == ["refused", "refused", "refused", "refused", "loaded"]
