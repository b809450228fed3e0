"""Which pages of other origins may read what, by the CORS protocol; a browser decides by nothing else."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import select

from app.enums import TaskStatus
from app.models import Clip, StoredObject
from tests.links.making import make_links, plant
from tests.support.api import create_task
from tests.support.clock import MORNING
from tests.support.service import Service, serve

APP, FOREIGN = "https://app.example.com", "https://foreign.example"
PAGE, STRANGER = {"Origin": APP}, {"Origin": FOREIGN}
ALLOW, VARY = "access-control-allow-origin", "vary"
NEEDED = "authorization, last-event-id, range, if-none-match, if-range, prefer, accept"
EXPOSED = {
    *("etag", "link", "location", "retry-after", "ratelimit", "ratelimit-policy", "content-range", "accept-ranges"),
    *("content-disposition", "preference-applied", "x-request-id"),
}


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """The service for the pages of two origins."""
    async with serve(database_url, cors_origins=f"{APP},http://127.0.0.1:3000") as service:
        yield service


def preflight(method: str = "GET", headers: str = NEEDED) -> dict[str, str]:
    return {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


def listed(answer: httpx.Response, name: str) -> set[str]:
    return {each.strip().lower() for each in answer.headers.get(name, "").split(",")} - {""}


async def test_request_of_two_origins_is_of_none(service: Service) -> None:
    for origins in ((APP, "https://evil.example"), ("https://evil.example", APP), (APP, APP)):
        answer = await service.client.get("/v1/usage", headers=[("Origin", each) for each in origins])

        assert (answer.status_code, answer.headers["vary"]) == (200, "Accept, Origin")
        assert "access-control-allow-origin" not in answer.headers


async def test_pages_of_allowed_origins_may_read_and_others_may_not(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id)
    by_key = ["/v1/tasks", f"/v1/tasks/{task.id}", "/v1/usage", f"/v1/tasks/{task.id}/events"]
    asks = [(service.client, url) for url in by_key]
    asks += [(service.anonymous, links["task_url"]), (service.anonymous, links["events_url"])]

    for client, url in asks:
        ours, foreign, none = [await client.get(url, headers=headers) for headers in (PAGE, STRANGER, {})]
        head = await client.head(url, headers=PAGE)
        assert {each.status_code for each in (ours, foreign, none, head)} == {200}, url
        assert (ours.headers[ALLOW], head.headers[ALLOW]) == (APP, APP), url
        assert listed(ours, "access-control-expose-headers") >= EXPOSED
        # A cache must not give one origin what was answered to another, or to none.
        assert all("origin" in listed(each, VARY) for each in (ours, foreign, none)), url
        assert [name for each in (foreign, none) for name in each.headers if name.startswith("access-control")] == []


async def test_no_response_allows_credentials(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id)

    answers = [
        *[await service.anonymous.get(links["task_url"], headers=headers) for headers in (PAGE, STRANGER)],
        *[await service.anonymous.get(links["audio_urls"][0], headers=headers) for headers in (PAGE, STRANGER)],
        await service.anonymous.options(f"/v1/tasks/{task.id}", headers=PAGE | preflight()),
        await service.anonymous.options(links["audio_urls"][0], headers=STRANGER | preflight()),
    ]

    assert [each for each in answers if "access-control-allow-credentials" in each.headers] == []


async def test_preflight_allows_reads_with_a_key_and_nothing_else(service: Service) -> None:
    task = await create_task(service.client)
    path = f"/v1/tasks/{task['id']}"

    allowed = [await service.anonymous.options(path, headers=PAGE | preflight(method)) for method in ("GET", "HEAD")]
    refused = [
        await service.anonymous.options(path, headers=PAGE | preflight(method))
        for method in ("POST", "PUT", "PATCH", "DELETE", "get", "")
    ]
    foreign = [
        await service.anonymous.options(path, headers={"Origin": origin, **preflight()})
        for origin in (FOREIGN, "null", f"{APP}.evil.example", APP.upper(), f"{APP}:8443", "*", "")
    ]
    changed = await service.client.post(f"{path}/cancel", headers=PAGE)

    for answer in allowed:
        assert (answer.status_code, answer.headers[ALLOW], answer.headers[VARY]) == (204, APP, "Origin")
        assert listed(answer, "access-control-allow-methods") == {"get", "head"}
        assert listed(answer, "access-control-allow-headers") >= set(NEEDED.split(", "))
        assert answer.headers["access-control-max-age"] == "7200"
        assert answer.headers["x-request-id"]
    for answer in [*refused, *foreign]:
        assert answer.status_code == 405
        assert ALLOW not in answer.headers
    assert (changed.status_code, ALLOW in changed.headers) == (200, False)


async def test_page_can_read_why_it_was_refused(service: Service) -> None:
    service.services.clips.audio_wait = service.services.clips.audio_wait * 0
    task = await plant(service, TaskStatus.generating)
    links = await make_links(service, task.id)
    asks = [
        (401, service.anonymous, f"/v1/tasks/{task.id}"),
        (401, service.anonymous, links["task_url"] + "x"),
        (404, service.client, f"/v1/tasks/{'0' * 32}"),
        (404, service.client, "/v1/nothing"),
        (409, service.client, f"/v1/tasks/{task.id}/clips/0/audio"),
        (409, service.anonymous, links["audio_urls"][0]),
        (422, service.client, "/v1/tasks?limit=0"),
        (422, service.client, "/v1/tasks?limit=%ff"),
    ]

    for status, client, url in asks:
        answer = await client.get(url, headers=PAGE)
        assert (answer.status_code, answer.headers[ALLOW]) == (
            status,
            "*" if client is service.anonymous and "/clips/" in url else APP,
        ), url


async def test_page_can_read_that_the_storage_is_away(service: Service) -> None:
    task = await plant(service)
    async with service.database.writes.begin() as session:
        session.add(StoredObject(key="nowhere", attempts=0))
        await session.flush()
        clip = (await session.scalars(select(Clip).where(Clip.task_id == task.id, Clip.index == 0))).one()
        clip.archived_at, clip.storage_key, clip.size, clip.sha256 = MORNING, "nowhere", 10, "0" * 64
    by_link = (await make_links(service, task.id))["audio_urls"][0]
    by_key = httpx.URL(by_link).copy_with(query=None)

    answers = [await service.anonymous.get(by_link, headers=PAGE), await service.client.get(by_key, headers=PAGE)]

    assert [(answer.status_code, answer.headers[ALLOW]) for answer in answers] == [(503, "*"), (503, APP)]


async def test_links_to_files_answer_pages_of_any_origin(service: Service) -> None:
    task = await plant(service)
    links = await make_links(service, task.id)
    shown = (await service.anonymous.get(links["task_url"])).json()
    image, audio = shown["clips"][0]["image_url"], shown["clips"][0]["audio_url"]
    service.services.clips.audio_wait = service.services.clips.audio_wait * 0

    for url in (image, audio, (await service.task(task.id))["clips"][0]["audio_url"]):
        for headers in (PAGE, STRANGER, {"Origin": "null"}, {}):
            answer = await service.anonymous.get(url, headers=headers)
            assert (answer.headers[ALLOW], answer.status_code) == ("*", 409)
        asked = await service.anonymous.options(url, headers=STRANGER | preflight())
        assert (asked.status_code, asked.headers[ALLOW]) == (204, "*")
        assert listed(asked, "access-control-allow-headers") >= {"range", "authorization"}


async def test_callbacks_pages_and_documents_are_for_no_other_origin(service: Service) -> None:
    paths = ["/console/sign-in", "/docs", "/openapi.json", "/readyz", "/metrics", "/", "/api/v1/generate/credit"]

    for path in [*paths, service.callback_path("0" * 32)]:
        for answer in (
            await service.client.get(path, headers=PAGE),
            await service.client.options(path, headers=PAGE | preflight()),
        ):
            assert [name for name in answer.headers if name.startswith("access-control")] == [], path


async def test_without_origins_only_links_to_files_are_shared(database_url: str) -> None:
    async with serve(database_url) as service:
        task = await plant(service)
        links = await make_links(service, task.id)
        service.services.clips.audio_wait = service.services.clips.audio_wait * 0
        read = await service.anonymous.get(links["task_url"], headers=PAGE)
        asked = await service.anonymous.options(f"/v1/tasks/{task.id}", headers=PAGE | preflight())
        audio = await service.anonymous.get(links["audio_urls"][0], headers=PAGE)

    assert (read.status_code, ALLOW in read.headers, read.headers[VARY]) == (200, False, "Prefer")
    assert (asked.status_code, ALLOW in asked.headers) == (405, False)
    assert audio.headers[ALLOW] == "*"
