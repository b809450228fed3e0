"""What can be done about a task on its page: by our own forms, for one's own tasks, and as an admin for all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app.auth.api_keys import create_key
from app.enums import TaskStatus
from app.models import ApiKey, Delivery, Task
from tests.console import stories
from tests.console.stories import HOSTILE
from tests.support.clock import MORNING
from tests.support.rows import reread
from tests.support.service import Service, serve_with_sandbox
from tests.support.settings import KEY

S = TaskStatus
ACTIONS = ["cancel", "delete", "order-again", "resolve", "deliveries/1/resend"]
PAGES = ["", "/clips/0/audio", "/clips/0/peaks", "/clips/0/image", "/clips/0/lyrics.srt"]


class Browser(httpx.AsyncClient):
    """A client that keeps cookies, and sends the forms of pages."""

    async def token(self, path: str) -> str:
        found = re.search('name="csrf_token" value="([^"]+)"', (await self.get(path)).text)
        assert found
        return found[1]

    async def act(self, task_id: str, action: str, **fields: str) -> httpx.Response:
        """Send one of the forms of a task's page, as the page has it."""
        page = f"/console/tasks/{task_id}"
        return await self.post(f"{page}/{action}", data={"csrf_token": await self.token("/console/tasks"), **fields})

    async def notice(self, answer: httpx.Response) -> str:
        """What the page says that an action led to."""
        page = (await self.get(answer.headers["location"])).text
        found = re.search('<p class="notice" role="status">(.*?)</p>', page)
        assert found, page
        return unescape(found[1])


@asynccontextmanager
async def browser_of(service: Service, key: str = KEY) -> AsyncIterator[Browser]:
    async with Browser(base_url=service.client.base_url, trust_env=False, timeout=30) as browser:
        assert (await browser.post("/console/sign-in", data={"key": key})).status_code == 303
        yield browser


@asynccontextmanager
async def admin_of(service: Service) -> AsyncIterator[Browser]:
    async with service.database.writes.begin() as session:
        key = await create_key(session, "on call", MORNING, is_admin=True)
    async with browser_of(service, key) as browser:
        yield browser


async def count_tasks(service: Service) -> int:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(Task)) or 0


async def test_queued_task_is_canceled_once(service: Service) -> None:
    task_id = await service.create_task()
    async with browser_of(service) as browser:
        answer = await browser.act(task_id, "cancel")
        said = await browser.notice(answer)
        again = await browser.notice(await browser.act(task_id, "cancel"))

    assert answer.status_code == 303
    assert (said, again) == ("The task is canceled.", "The task had ended before it could be canceled.")
    assert (await service.task(task_id))["status"] == "canceled"


async def test_task_is_deleted_once_it_has_ended(service: Service) -> None:
    task_id = await service.create_task()
    async with browser_of(service) as browser:
        early = await browser.notice(await browser.act(task_id, "delete"))
        await browser.act(task_id, "cancel")
        answer = await browser.act(task_id, "delete")
        gone = await browser.get(f"/console/tasks/{task_id}")

    assert early == "The task has not ended: cancel it first."
    assert answer.headers["location"] == "/console/tasks"
    assert gone.status_code == 404


async def test_same_sound_is_ordered_anew_and_once_for_each_form(service: Service) -> None:
    order = {"model": "V5", "sound_tempo": 90, "sound_key": "Am", "sound_loop": True, "metadata": {"scene": "attic"}}
    task_id = await service.create_task("rain", **order)
    async with browser_of(service) as browser:
        page = await browser.get(f"/console/tasks/{task_id}")
        found = re.search('name="order_key" value="([^"]+)"', page.text)
        assert found
        first, second = [await browser.act(task_id, "order-again", order_key=found[1]) for _ in range(2)]

    assert first.headers["location"] == second.headers["location"] != f"/console/tasks/{task_id}"
    assert await count_tasks(service) == 2
    old, new = await service.task(task_id), await service.task(first.headers["location"].rsplit("/", 1)[1])
    assert {name: old[name] for name in (*order, "prompt")} == {name: new[name] for name in (*order, "prompt")}


async def test_sound_of_the_vendors_api_is_ordered_anew_for_the_same_receiver(service: Service) -> None:
    order = {"prompt": "rain", "model": "V5", "callBackUrl": "https://caller.example/sounds"}
    answer = (await service.client.post("/api/v1/generate/sounds", json=order)).json()
    async with browser_of(service) as browser:
        ordered = await browser.act(answer["data"]["taskId"], "order-again")

    async with service.database.reads() as session:
        new = await session.get_one(Task, ordered.headers["location"].rsplit("/", 1)[1])
    assert new.callback_url == order["callBackUrl"]


async def test_admin_resolves_a_task_of_somebody_else(service: Service) -> None:
    task_id = await stories.unconfirmed(service)
    async with admin_of(service) as browser:
        without_id = await browser.notice(await browser.act(task_id, "resolve", status="generating"))
        unknown = await browser.act(task_id, "resolve", status="submitting")
        impossible = await browser.notice(await browser.act(task_id, "resolve", status="succeeded"))
        done = await browser.act(task_id, "resolve", status="generating", upstream_task_id=" up-found ")
    task = await reread(service.database, task_id)

    assert without_id == "To be generating, the task needs the upstream's id."
    assert unknown.status_code == 422
    assert impossible == "A task that is unconfirmed cannot be made succeeded without clips."
    assert done.status_code == 303
    assert (task.status, task.upstream_task_id) == (S.generating, "up-found")


async def test_only_what_a_task_can_be_is_offered(service: Service) -> None:
    offered: dict[str, list[str]] = {}
    for story in (stories.held, stories.unconfirmed, stories.generating, stories.failed, stories.expired):
        task_id = await story(service)
        async with admin_of(service) as browser:
            page = (await browser.get(f"/console/tasks/{task_id}")).text
        select_ = re.search('<select id="status".*?</select>', page, re.DOTALL)
        offered[story.__name__] = re.findall("<option>(\\w+)</option>", select_[0]) if select_ else []

    assert offered == {
        "held": ["generating", "failed", "canceled"],
        "unconfirmed": ["generating", "failed", "canceled"],
        "generating": ["succeeded", "failed", "canceled"],
        # The upstream refused it: no id will be found.
        "failed": [],
        "expired": ["generating"],
    }


async def test_admin_acts_for_the_owner(service: Service) -> None:
    task_id = await stories.failed(service, "no")
    async with service.database.reads() as session:
        [delivery] = (await session.scalars(select(Delivery).where(Delivery.task_id == task_id))).all()
    async with admin_of(service) as browser:
        resent = await browser.act(task_id, f"deliveries/{delivery.id}/resend")
        refused = await browser.act(task_id, "order-again", order_key="k-1")
        ordered = await browser.act(await service.create_task(), "order-again", order_key="k-2")
        deleted = await browser.act(task_id, "delete")

    assert resent.headers["location"] == f"/console/tasks/{task_id}#deliveries"
    # Its webhook_url is one that no new order may have.
    assert (refused.status_code, "webhook_url" in refused.text) == (422, True)
    new = await reread(service.database, ordered.headers["location"].rsplit("/", 1)[1])
    assert new.api_key_id == await stories.key_id_of(service)
    assert deleted.status_code == 303


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_nothing_is_ordered_for_a_key_that_does_not_work(service: Service, end: str) -> None:
    task_id = await service.create_task()
    async with service.database.writes.begin() as session:
        owner = await session.get_one(ApiKey, await stories.key_id_of(service))
        owner.revoked_at, owner.expires_at = (MORNING, None) if end == "revoked" else (None, MORNING)
    async with admin_of(service) as browser:
        refused = await browser.act(task_id, "order-again", order_key="k-1")

    assert refused.status_code == 409
    advice = {"revoked": f"soundpost keys rotate {owner.id}", "expired": f"soundpost keys set {owner.id} --no-expiry"}
    assert advice[end] in refused.text
    assert await count_tasks(service) == 1


async def test_failed_delivery_is_due_again_at_once(service: Service) -> None:
    task_id = await stories.failed(service, "no")
    async with service.database.reads() as session:
        [before] = (await session.scalars(select(Delivery).where(Delivery.task_id == task_id))).all()
        now = await service.database.now(session)
    async with browser_of(service) as browser:
        assert (await browser.act(task_id, f"deliveries/{before.id}/resend")).status_code == 303
    async with service.database.reads() as session:
        after = await session.get_one(Delivery, before.id)

    assert before.due_at
    assert after.due_at
    assert before.due_at > after.due_at
    assert abs((after.due_at - now).total_seconds()) < 5


@pytest.mark.parametrize("typed", ["a\0", 300 * "a", "two words"])
async def test_no_task_is_attached_to_what_is_no_id(service: Service, typed: str) -> None:
    task_id = await stories.unconfirmed(service)
    async with admin_of(service) as browser:
        answer = await browser.act(task_id, "resolve", status="generating", upstream_task_id=typed)
        said = answer.text if answer.status_code == 400 else await browser.notice(answer)

    assert "An id of the upstream has up to 200" in said or "The form cannot be read" in said
    assert (await service.task(task_id))["status"] == "unconfirmed"


@pytest.mark.parametrize(("key", "status"), [("a\0", 400), (300 * "a", 303)])
async def test_forged_key_of_an_order_is_no_error_of_ours(service: Service, key: str, status: int) -> None:
    task_id = await service.create_task("rain")
    async with browser_of(service) as browser:
        answer = await browser.act(task_id, "order-again", order_key=key)

    assert answer.status_code == status


async def test_callers_may_not_resolve(service: Service) -> None:
    task_id = await stories.unconfirmed(service)
    async with browser_of(service) as browser:
        page = await browser.get(f"/console/tasks/{task_id}")
        answer = await browser.act(task_id, "resolve", status="failed")

    assert answer.status_code == 403
    assert "/resolve" not in page.text
    assert (await reread(service.database, task_id)).status is S.unconfirmed


@pytest.mark.parametrize("action", ACTIONS)
async def test_no_action_without_the_token_of_the_session(service: Service, action: str) -> None:
    task_id = await service.create_task()
    async with browser_of(service) as browser:
        path = f"/console/tasks/{task_id}/{action}"
        answers = [await browser.post(path, data=data) for data in ({"a": "b"}, {"csrf_token": "x"})]
        foreign = await browser.post(
            path,
            data={"csrf_token": await browser.token("/console/tasks")},
            headers={"Origin": "https://evil.example"},
        )

    assert [answer.status_code for answer in (*answers, foreign)] == [403, 403, 403]
    assert (await service.task(task_id))["status"] == "queued"
    assert await count_tasks(service) == 1


@pytest.mark.parametrize("action", ACTIONS)
async def test_task_of_another_key_is_not_found_by_any_action(service: Service, action: str) -> None:
    task_id = await service.create_task()
    async with service.database.writes.begin() as session:
        key = await create_key(session, "others", MORNING, is_admin=False)
    async with browser_of(service, key) as browser:
        answer = await browser.act(task_id, action, status="failed")

    # Whatever the task: only admins resolve.
    assert answer.status_code == (403 if action == "resolve" else 404)
    assert (await service.task(task_id))["status"] == "queued"
    assert await count_tasks(service) == 1


@pytest.mark.parametrize("page", PAGES)
async def test_task_of_another_key_is_not_found_on_any_page(service: Service, page: str) -> None:
    task_id = await service.create_task()
    async with service.database.writes.begin() as session:
        key = await create_key(session, "others", MORNING, is_admin=False)
    async with browser_of(service, key) as browser:
        assert (await browser.get(f"/console/tasks/{task_id}{page}")).status_code == 404
        async with browser.stream("GET", f"/console/live/tasks/{task_id}") as stream:
            assert stream.status_code == 404
    async with Browser(base_url=service.client.base_url, trust_env=False, timeout=30) as nobody:
        assert (await nobody.get(f"/console/tasks/{task_id}{page}")).status_code == 303


async def test_no_word_of_a_task_is_markup(service: Service) -> None:
    task_id = await stories.failed(service)
    async with browser_of(service) as browser:
        page = (await browser.get(f"/console/tasks/{task_id}")).text

    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    # In the prompt, twice in the metadata, in the error, in the callbacks, in answers to webhooks and in the command.
    assert page.count("&lt;script&gt;alert(1)") >= 8
    assert not re.search(r"<[^>]*\son\w+=", page)
    assert not re.search(r"<[^>]*\sstyle=", page)


async def test_page_tells_no_secret(service: Service) -> None:
    task_id = await stories.failed(service)
    async with admin_of(service) as browser:
        page = (await browser.get(f"/console/tasks/{task_id}")).text

    token = service.services.keyring.callback_token(task_id)
    assert [secret for secret in (KEY, token, "signature=", "whsec_", "/callbacks/" + task_id) if secret in page] == []


async def test_sounds_are_played_with_ranges_and_their_waveform_is_kept_by_browsers(
    database_url: str, tmp_path: Path
) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived(grab_lyrics=True)
        await service.until(task["id"], lambda task: all(clip["lyrics"] is not None for clip in task["clips"]))
        files = f"/console/tasks/{task['id']}/clips/0"
        async with browser_of(service) as browser:
            part = await browser.get(f"{files}/audio", headers={"Range": "bytes=0-99"})
            peaks = await browser.get(f"{files}/peaks")
            again = await browser.get(f"{files}/peaks", headers={"If-None-Match": peaks.headers["etag"]})
            lyrics = await browser.get(f"{files}/lyrics.srt")
            cover = await browser.get(f"{files}/image")
            missing = await browser.get(f"/console/tasks/{task['id']}/clips/7/peaks")

    assert (part.status_code, len(part.content), part.headers["content-type"]) == (206, 100, "audio/wav")
    assert peaks.json()["duration"] == pytest.approx(task["clips"][0]["duration"], abs=0.1)
    assert len(peaks.json()["peaks"]) > 500
    assert (again.status_code, again.content) == (304, b"")
    assert "-->" in lyrics.text
    assert (cover.status_code, cover.headers["content-type"], missing.status_code) == (200, "image/png", 404)
