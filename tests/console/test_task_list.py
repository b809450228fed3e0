"""The list of tasks: whose tasks it shows, what its URL asks for, and how it stays up to date."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx
import pytest
from sqlalchemy import update

from app.console.live import MAX_STREAMS_EACH
from app.enums import TaskStatus
from app.models import ApiKey
from tests.console.visiting import HOSTILE, browser_of, key_of
from tests.support.service import Service, serve
from tests.support.wait import eventually


def prompts(page: httpx.Response) -> list[str]:
    """The prompts that a list shows, in its order."""
    assert page.status_code in (200, 422), page.text
    return [unescape(text) for text in re.findall('<a href="/console/tasks/[0-9a-f]{32}">([^<]*)</a>', page.text)]


async def test_a_caller_sees_its_own_tasks_and_an_admin_all(service: Service) -> None:
    await service.create_task("mine")
    key, admin_key = await key_of(service, "other"), await key_of(service, "chief", is_admin=True)
    async with browser_of(service, key) as other, browser_of(service) as mine, browser_of(service, admin_key) as admin:
        pages = [await browser.get("/console/tasks") for browser in (mine, other, admin)]

    assert [prompts(page) for page in pages] == [["mine"], [], ["mine"]]
    assert ["1</b>" in page.text.partition('class="legend"')[2][:300] for page in pages] == [True, False, True]
    assert '<td class="more">tests</td>' in pages[2].text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ["three", "two", "one"]),
        ("?status=canceled", ["two"]),
        ("?model=V5_5", ["three"]),
        ("?metadata.scene=attic%3Done", ["one"]),
        ("?created_after=2001-01-01T00:00", ["three", "two", "one"]),
        ("?created_before=2001-01-01T00:00:00Z", []),
        ("?status=canceled&model=V5_5", []),
    ],
)
async def test_the_url_filters_as_the_api_does(service: Service, query: str, shown: list[str]) -> None:
    await service.create_task("one", metadata={"scene": "attic=one"})
    second = await service.create_task("two")
    await service.create_task("three", model="V5_5")
    (await service.client.post(f"/v1/tasks/{second}/cancel")).raise_for_status()
    async with browser_of(service) as browser:
        page = await browser.get(f"/console/tasks{query}")

    assert page.status_code == 200
    assert prompts(page) == shown


async def test_what_cannot_be_filtered_by_is_explained(service: Service) -> None:
    await service.create_task("one")
    async with browser_of(service) as browser:
        pages = [
            await browser.get(f"/console/tasks?{query}")
            for query in (
                "status=nonsense",
                "created_after=yesterday",
                "cursor=nonsense",
                "created_after=0001-01-01T00:00",
            )
        ]

    assert [page.status_code for page in pages[:3]] == [422, 422, 422]
    assert "status: " in pages[0].text
    assert {tuple(prompts(page)) for page in pages} == {("one",)}


async def test_form_leads_to_a_url_without_what_is_empty(service: Service) -> None:
    task_id = await service.create_task("one")
    async with browser_of(service) as browser:
        empty = await browser.get("/console/tasks?status=&model=&metadata=&id=")
        some = await browser.get("/console/tasks?status=failed&metadata=scene%3Dattic&metadata=a%3Db%3Dc&metadata=&id=")
        jump = await browser.get(f"/console/tasks?status=failed&id=+{task_id.upper()}")

    assert empty.headers["location"] == "/console/tasks"
    assert some.headers["location"] == "/console/tasks?status=failed&metadata.scene=attic&metadata.a=b%3Dc"
    assert jump.headers["location"] == f"/console/tasks/{task_id}"


async def test_pages_follow_each_other(service: Service) -> None:
    for number in range(52):
        await service.add_task(prompt=f"sound {number}", now=datetime.now(UTC) + timedelta(seconds=number))
    async with browser_of(service) as browser:
        first = await browser.get("/console/tasks?status=queued")
        following = re.findall('<a rel="next" href="([^"]+)"', first.text)
        last = await browser.get(unescape(following[0]))

    assert len(prompts(first)) == 50
    assert sorted(prompts(first) + prompts(last)) == sorted(f"sound {number}" for number in range(52))
    assert 'rel="next"' not in last.text
    assert "status=queued" in following[0]


async def test_nothing_that_others_wrote_is_markup(service: Service) -> None:
    key = await key_of(service, HOSTILE[:100], is_admin=True)
    await service.create_task(HOSTILE, metadata={HOSTILE[:64]: HOSTILE})
    async with browser_of(service, key) as browser:
        pages = [
            await browser.get(path, params=params)
            for path, params in (
                ("/console/tasks", {}),
                ("/console/tasks", {"status": HOSTILE}),
                ("/console/tasks", {"model": HOSTILE, f"metadata.{HOSTILE}": HOSTILE}),
                ("/console/sign-in", {"next": HOSTILE}),
                ("/console/" + HOSTILE, {}),
            )
        ]

    assert all("<script>alert" not in page.text and "<img" not in page.text for page in pages)
    assert unescape(pages[0].text).count(HOSTILE) >= 3


async def test_last_hour_is_counted_by_minute_and_state(service: Service) -> None:
    now = datetime.now(UTC)
    for status, minutes in (
        (TaskStatus.failed, 5),
        (TaskStatus.failed, 5),
        (TaskStatus.succeeded, 9),
        (TaskStatus.failed, 61),
    ):
        began = now.replace(second=30) - timedelta(minutes=minutes)
        await service.add_task(status, now=began)
    async with browser_of(service) as browser:
        page = await browser.get("/console/tasks")
    table = page.text.partition('data-source="hour"')[2].partition("</table>")[0]
    rows = re.findall(r">(\d\d:\d\d)</time></th>\s*<td>(\d+)</td><td>(\d+)</td>", table)

    assert re.findall('data-status="([a-z]+)"', table) == ["succeeded", "failed"]
    assert len(rows) == 60
    counted = {minute: (good, bad) for minute, good, bad in rows if (good, bad) != ("0", "0")}
    at = [(now - timedelta(minutes=minutes)).strftime("%H:%M") for minutes in (9, 5)]
    assert counted == {at[0]: ("1", "0"), at[1]: ("0", "2")}


async def test_stream_tells_of_changes_until_the_process_stops(database_url: str) -> None:
    async with serve(database_url) as service, browser_of(service) as browser:
        await service.create_task("first")
        async with browser.stream("GET", "/console/live/tasks", timeout=20) as stream:
            messages = _messages(stream)
            before = await anext(messages)
            await service.create_task("second")
            after = await _until(messages, "second")
            service.services.wakeups.close()
            rest = [message async for message in messages]

    assert stream.headers["content-type"].startswith("text/event-stream")
    assert before.count("<hx-partial hx-target=") == before.count("</hx-partial>") == 5
    assert "first" in before
    assert "first" in after
    assert rest[-1] == "retry: 1000"


async def test_stream_ends_with_its_key(service: Service) -> None:
    service.services.waiters.check_keys_every = timedelta(seconds=0.1)
    key = await key_of(service, "soon revoked")
    async with browser_of(service, key) as browser, browser.stream("GET", "/console/live/tasks", timeout=20) as stream:
        messages = _messages(stream)
        await anext(messages)
        async with service.database.transaction() as (session, now):
            await session.execute(update(ApiKey).where(ApiKey.name == "soon revoked").values(revoked_at=now))
        async with asyncio.timeout(10):
            rest = [message async for message in messages]

    assert rest[-1] == "retry: 1000"


async def test_streams_of_one_key_are_bounded(service: Service) -> None:
    key = await key_of(service, "other")
    async with browser_of(service) as browser, browser_of(service, key) as other, AsyncExitStack() as stack:
        # A stream is closed when nobody holds its messages any more.
        streams = []
        for _ in range(MAX_STREAMS_EACH):
            stream = await stack.enter_async_context(browser.stream("GET", "/console/live/tasks", timeout=20))
            streams.append((stream, _messages(stream)))
            await anext(streams[-1][1])
        too_many = await browser.get("/console/live/tasks")
        await streams[0][0].aclose()
        await eventually(lambda: len(service.services.wakeups.subscriptions()) < MAX_STREAMS_EACH)
        async with browser.stream("GET", "/console/live/tasks", timeout=20) as again:
            status = again.status_code
        async with other.stream("GET", "/console/live/tasks", timeout=20) as one_of_another:
            status_of_another = one_of_another.status_code

    assert too_many.status_code == 204
    assert (status, status_of_another) == (200, 200)


async def test_streams_of_all_keys_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.live.MAX_STREAMS", 1)
    key = await key_of(service, "other")
    async with (
        browser_of(service) as browser,
        browser_of(service, key) as other,
        browser.stream("GET", "/console/live/tasks", timeout=20) as stream,
    ):
        messages = _messages(stream)
        await anext(messages)
        too_many = await other.get("/console/live/tasks")
        await messages.aclose()

    assert too_many.status_code == 204


async def _messages(stream: httpx.Response) -> AsyncGenerator[str]:
    """What comes between two empty lines, as it comes."""
    lines: list[str] = []
    async for line in stream.aiter_lines():
        if line:
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


async def _until(messages: AsyncIterator[str], text: str) -> str:
    async with asyncio.timeout(20):
        async for message in messages:
            if text in message:
                return message
    raise AssertionError(f"the stream ended before it told of {text}")


async def test_credits_are_asked_for_on_demand_alone(service: Service) -> None:
    async with browser_of(service) as browser:
        page = await browser.get("/console/tasks")
        token = re.findall('name="csrf_token" value="([^"]+)"', page.text)[0]
        answer = await browser.post("/console/credits", data={"csrf_token": token})
        after = await browser.get(answer.headers["location"])

    assert "not known yet" in page.text
    assert "The upstream did not report its credits" in after.text


async def test_head_of_a_stream_has_no_end_to_wait_for(service: Service) -> None:
    async with browser_of(service) as browser:
        head = await browser.head("/console/live/tasks")

    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
