"""A link reads one task without a key: what it is for, for as long as it lasts, and without what is its owner's."""

import asyncio
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx

from app.enums import ErrorCode, TaskStatus
from app.models import Task
from app.tasks.transitions import Failure
from tests.links.making import ALL, OWNERS, WORDS, facts_of, make_links, plant
from tests.support.api import Json, cancel, client_of, create_task, events_in, sse_blocks, timed
from tests.support.service import Service, client_with_key, serve
from tests.support.settings import SECRET_KEY
from tests.support.wait import eventually

AS_STREAM = {"Accept": "text/event-stream"}
KEPT_BACK = {"metadata", "webhook_url"}


async def test_links_say_what_they_read_and_until_when(service: Service) -> None:
    task = await plant(service)
    before = datetime.now(UTC)

    links = await make_links(service, task.id)

    until = datetime.fromisoformat(links["expires_at"])
    assert timedelta(seconds=-1) <= until - before - timedelta(minutes=15) < timedelta(seconds=10)
    base = f"{str(service.client.base_url).rstrip('/')}/v1/tasks/{task.id}"
    urls = [links["task_url"], links["events_url"], *links["audio_urls"]]
    assert [url.partition("?")[0] for url in urls] == [
        base,
        f"{base}/events",
        f"{base}/clips/0/audio",
        f"{base}/clips/1/audio",
    ]
    for url in urls:
        assert set(query := parse_qs(urlsplit(url).query)) == {"expires", "scope", "signature"}
        assert query["expires"] == [str(int(until.timestamp()))]


async def test_scope_gives_what_it_names_and_null_for_the_rest(service: Service) -> None:
    task = await plant(service)

    for scope in (["task"], ["events"], ["audio"], ["audio", "events"], ALL):
        links = await make_links(service, task.id, scope=scope, ttl=60)

        given = {"task": links["task_url"], "events": links["events_url"], "audio": links["audio_urls"]}
        assert {name for name, url in given.items() if url is not None} == set(scope)


async def test_links_that_cannot_be_are_refused(service: Service) -> None:
    task = await plant(service)
    wrong: list[Json] = [{"scope": value} for value in ([], ["callbacks"], "task", None)]
    wrong += [{"ttl": value} for value in (0, 604_801, 1.5, "900", None)]

    for order in [*wrong, {"until": 1}]:
        asked = await service.client.post(f"/v1/tasks/{task.id}/links", json=order)
        ordered = await service.client.post("/v1/tasks", json={"prompt": "rain", "links": order})
        assert (asked.status_code, ordered.status_code) == (422, 422), order

    assert len((await service.client.get("/v1/tasks")).json()["items"]) == 1


async def test_document_of_a_link_is_the_callers_without_what_is_its_owners(service: Service) -> None:
    task = await plant(service, TaskStatus.failed)
    links = await make_links(service, task.id)

    whole = await service.task(task.id)
    shown = (await service.anonymous.get(links["task_url"])).json()

    assert set(whole) - set(shown) == KEPT_BACK
    assert shown["error"] == {"code": "content_rejected", "upstream_code": 400}
    same = set(shown) - {"error", "clips"}
    assert {name: shown[name] for name in same} == {name: whole[name] for name in same}
    assert [clip["upstream_audio_url"] for clip in shown["clips"]] == [None, None]
    assert [clip["audio_url"] for clip in shown["clips"]] == links["audio_urls"]
    covers = [url.replace("/audio?", "/image?").partition("&")[0] for url in links["audio_urls"]]
    assert [clip["image_url"].partition("&")[0] for clip in shown["clips"]] == covers
    assert OWNERS not in str(shown)
    assert WORDS not in str(shown)


async def test_document_without_audio_in_its_scope_leads_to_none(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id, scope=["task"])

    shown = (await service.anonymous.get(links["task_url"])).json()

    leads = ("audio_url", "image_url", "upstream_audio_url")
    assert [[clip[name] for name in leads] for clip in shown["clips"]] == [[None] * 3] * 2


async def test_events_of_a_link_are_without_the_upstreams_words(service: Service) -> None:
    task = await create_task(service.client)
    links = await make_links(service, task["id"])
    async with service.database.transaction() as (session, now):
        row = await session.get_one(Task, task["id"])
        row.status = TaskStatus.generating
        service.services.lifecycle.fail(session, row, Failure(ErrorCode.content_rejected, WORDS, 400), now)

    listed = (await service.anonymous.get(links["events_url"])).json()["items"]
    streamed = events_in(await _stream(service.anonymous, links["events_url"]))
    whole = (await service.client.get(f"/v1/tasks/{task['id']}/events")).json()["items"]

    assert listed == streamed
    assert [event["id"] for event in listed] == [event["id"] for event in whole]
    assert whole[-1]["data"]["error"] == {"code": "content_rejected", "message": WORDS, "upstream_code": 400}
    assert listed[-1]["data"]["error"] == {"code": "content_rejected", "upstream_code": 400}


async def test_pages_of_events_are_linked_with_the_signature(service: Service) -> None:
    task = await create_task(service.client)
    await cancel(service.client, task)
    url = (await make_links(service, task["id"]))["events_url"]

    first = await service.anonymous.get(f"{url}&limit=1")
    second = await service.anonymous.get(first.links["next"]["url"])

    types = [event["type"] for page in (first, second) for event in page.json()["items"]]
    assert types == ["task.created", "task.canceled"]


async def test_stream_of_a_link_resumes_by_its_url_too(service: Service) -> None:
    task = await create_task(service.client)
    await cancel(service.client, task)
    url = (await make_links(service, task["id"]))["events_url"]
    first, second = (await service.client.get(f"/v1/tasks/{task['id']}/events")).json()["items"]

    def of_key(event: Json) -> str:
        return f"/v1/tasks/{task['id']}/events?last_event_id={event['id']}"

    by_url = await _stream(service.anonymous, f"{url}&last_event_id={first['id']}")
    by_key = await _stream(service.client, of_key(first))
    # An EventSource that reconnects sends the later one, and keeps its URL.
    by_both = await service.anonymous.get(
        f"{url}&last_event_id={first['id']}", headers={**AS_STREAM, "Last-Event-ID": second["id"]}
    )
    at_its_end = await service.client.get(of_key(second), headers=AS_STREAM)

    assert events_in(by_url) == events_in(by_key) == [second]
    assert (by_both.status_code, at_its_end.status_code) == (204, 204)


async def test_stream_ends_with_its_link(service: Service) -> None:
    task = await create_task(service.client)
    short, long = [(await make_links(service, task["id"], ttl=ttl))["events_url"] for ttl in (2, 60)]

    async with service.anonymous.stream("GET", long, headers=AS_STREAM) as other:
        others = sse_blocks(other)
        await anext(others)
        blocks = await asyncio.wait_for(_stream(service.anonymous, short), 10)
        again = await service.anonymous.get(short, headers=AS_STREAM)
        await cancel(service.client, task)
        last = await anext(others)
        if "retry" in last:
            last = await anext(others)

    assert [event["type"] for event in events_in(blocks)] == ["task.created"]
    assert "retry" not in blocks[-1]
    assert again.status_code == 401
    assert last["event"] == "task.canceled"


async def test_wait_and_entity_tag_and_head_work_with_a_link(service: Service) -> None:
    task = await create_task(service.client)
    url = (await make_links(service, task["id"]))["task_url"]
    read = await service.anonymous.get(url)

    known = await service.anonymous.get(url, headers={"If-None-Match": read.headers["etag"]})
    head = await service.anonymous.head(url)
    waiting = [
        asyncio.create_task(service.anonymous.get(url, headers={"Prefer": "wait=20"})),
        asyncio.create_task(service.client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=20"})),
    ]
    await asyncio.sleep(0.2)
    await cancel(service.client, task)
    linked, whole = await asyncio.gather(*waiting)

    assert (known.status_code, known.content) == (304, b"")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", read.headers["etag"])
    assert (linked.json()["status"], linked.headers["preference-applied"]) == ("canceled", "wait=20")
    assert set(whole.json()) - set(linked.json()) == KEPT_BACK


async def test_wait_ends_with_its_link(service: Service) -> None:
    task = await create_task(service.client)
    url = (await make_links(service, task["id"], ttl=2))["task_url"]

    answer, seconds = await timed(service.anonymous.get(url, headers={"Prefer": "wait=25"}))

    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert seconds < 10


async def test_order_answers_with_the_links_it_asks_for(service: Service) -> None:
    order = {"prompt": "soft rain", "links": {"ttl": 60}}
    key = {"Idempotency-Key": "one"}

    plain = await service.client.post("/v1/tasks", json=order)
    kept = await service.client.post("/v1/tasks", json=order, headers=key)
    again = await service.client.post("/v1/tasks", json={**order, "links": {"scope": ["events"]}}, headers=key)
    without = await service.client.post("/v1/tasks", json={"prompt": "soft rain"}, headers=key)

    assert {answer.status_code for answer in (plain, kept, again, without)} == {202}
    assert kept.json()["id"] == again.json()["id"] == without.json()["id"] != plain.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "links" not in without.json()
    assert again.json()["links"]["task_url"] is None
    for answer in (plain, kept):
        links = answer.json()["links"]
        assert links["audio_urls"] == []
        assert (await service.anonymous.get(links["task_url"])).json()["id"] == answer.json()["id"]
        assert "links" not in await service.task(answer.json()["id"])


async def test_order_that_waits_answers_with_links_to_its_audio(service: Service) -> None:
    waiting = asyncio.create_task(
        service.client.post(
            "/v1/tasks", json={"prompt": "soft rain", "links": {}}, headers={"Prefer": "wait=20"}, timeout=30
        )
    )
    tasks: list[Json] = []

    async def is_stored() -> bool:
        tasks[:] = (await service.client.get("/v1/tasks")).json()["items"]
        return bool(tasks)

    await eventually(is_stored)
    data = {"code": 200, "data": {"callbackType": "complete", "task_id": "up-1", "data": [_CLIP]}}
    await service.anonymous.post(service.callback_path(tasks[0]["id"]), json=data)
    answer = (await waiting).json()

    assert answer["status"] == "succeeded"
    assert [urlsplit(url).path for url in answer["links"]["audio_urls"]] == [f"/v1/tasks/{answer['id']}/clips/0/audio"]


async def test_erased_task_reads_like_an_unknown_one_by_its_links(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id)
    audio = links["audio_urls"][0]
    urls = [links["task_url"], links["events_url"], audio, audio.replace("/audio?", "/image?")]
    forged = [await service.anonymous.get(url.replace("signature=", "signature=x")) for url in urls]

    (await service.client.delete(f"/v1/tasks/{task.id}")).raise_for_status()
    answers = [await service.anonymous.get(url) for url in urls]
    stream = await service.anonymous.get(links["events_url"], headers=AS_STREAM)

    assert [facts_of(answer) for answer in answers] == [facts_of(answer) for answer in forged]
    assert facts_of(stream) == facts_of(forged[0])
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1


async def test_task_that_is_erased_during_a_wait_reads_so_too(service: Service) -> None:
    task = await create_task(service.client)
    await cancel(service.client, task)
    url = (await make_links(service, task["id"]))["task_url"]
    version = (await service.task(task["id"]))["version"]
    known = {"Prefer": "wait=20", "If-None-Match": f'W/"{version}"'}

    waiting = asyncio.create_task(service.anonymous.get(url, headers=known))
    await asyncio.sleep(0.2)
    (await service.client.delete(f"/v1/tasks/{task['id']}")).raise_for_status()

    assert (await waiting).content == (await service.anonymous.get(url)).content


async def test_links_are_given_to_the_owner_alone_and_outlive_its_key(service: Service) -> None:
    task = await plant(service)
    url = (await make_links(service, task.id))["task_url"]

    async with await client_with_key(service, "stranger") as stranger:
        refused = await stranger.post(f"/v1/tasks/{task.id}/links", json={})
        opened = await stranger.get(url)
        by_key = await stranger.get(url.replace("signature=", "signature=x"))

    assert (refused.status_code, opened.status_code, by_key.status_code) == (404, 200, 404)
    assert "metadata" not in opened.json()


async def test_link_of_the_secret_key_before_still_opens(database_url: str) -> None:
    async with serve(database_url) as service:
        task = await plant(service)
        url = httpx.URL((await make_links(service, task.id))["task_url"]).raw_path.decode()
    rotated, replaced = f"a-newer-key-of-the-list,{SECRET_KEY}", "a-newer-key-of-the-list"
    codes = []
    for keys in (rotated, replaced):
        async with (
            serve(database_url, secret_keys=keys) as service,
            client_of(str(service.client.base_url), None) as page,
        ):
            codes.append((await page.get(url)).status_code)

    assert codes == [200, 401]


_CLIP = {"id": "c1", "audio_url": "https://cdn.example/c1.mp3", "title": "Rain", "duration": 1.5}


async def _stream(client: httpx.AsyncClient, url: str) -> list[dict[str, str]]:
    async with client.stream("GET", url, headers=AS_STREAM) as response:
        assert response.status_code == 200
        return [block async for block in sse_blocks(response)]
