"""What a key may do: every route needs one scope of it, and no entrance lets in who lacks it."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import func, select, update

from app.auth.api_keys import OVERLAP, create_key, rotate_key
from app.console.application import create_console
from app.enums import Scope, TaskStatus
from app.main import create_app
from app.models import ApiKey, Task
from tests.console.visiting import browser_of
from tests.support.api import sse_blocks
from tests.support.clock import MORNING
from tests.support.service import Service, services_of

NOBODY = "0" * 32
# What everybody may ask for: what the upstream calls has a token instead, and the console's form is where keys are
# shown.
WITHOUT_KEY = {
    *("/", "/docs", "/docs/{digest}/{name:path}", "/problems/{slug}", "/livez", "/readyz", "/metrics"),
    *(
        "/callbacks/{task_id}/{token}",
        "/callbacks/{challenge}",
        "/console",
        "/console/",
        "/console/static/{digest}/{name:path}",
    ),
    "/console/sign-in",
}
# For whoever is signed in, whatever the key may do.
ANY_SCOPE = {"/console/sign-out"}


async def test_every_route_behind_a_key_needs_one_scope(database_url: str) -> None:
    async with services_of(database_url) as services:
        app = create_app(services)
        console = create_console(app.state.provided)
        found = {(path, *sorted(route.methods or ())): _scopes_of(route) for path, route in _routes(app, console)}

    wrong = {route for route, scopes in found.items() if len(scopes) != 1 and route[0] not in WITHOUT_KEY | ANY_SCOPE}
    assert wrong == set()
    assert {scope for scopes in found.values() for scope in scopes} <= {*Scope}
    assert len(found) > 60


@pytest.mark.parametrize("scope", Scope)
async def test_key_without_the_scope_is_refused_and_one_with_it_alone_is_not(service: Service, scope: Scope) -> None:
    app = create_app(service.services)
    routes = [(path, route) for path, route in _routes(app) if _scopes_of(route) == {scope}]
    others = ",".join(other for other in Scope if other not in (scope, Scope.admin))
    alone = "" if scope is Scope.admin else scope.value

    async with (
        _client(service, "lacks it", is_admin=scope is not Scope.admin, scopes=others) as lacking,
        _client(service, "has it", is_admin=scope is Scope.admin, scopes=alone) as having,
    ):
        for template, route in routes:
            path = re.sub(r"{[^}]+}", NOBODY, template)
            for method in route.methods or ():
                refused = await lacking.request(method, path, json={} if method in ("POST", "PUT", "PATCH") else None)
                taken = await having.request(method, path, json={} if method in ("POST", "PUT", "PATCH") else None)
                _check(refused, path, scope, has_body=method != "HEAD")
                assert taken.status_code not in (401, 403), (method, path, taken.text)


def _check(refused: httpx.Response, path: str, scope: Scope, *, has_body: bool) -> None:
    if path.startswith("/api/"):
        # The vendor has no other word for a key that is no good for this.
        assert refused.status_code == 401, path
        assert refused.json()["code"] == 401 if has_body else True
    else:
        assert refused.status_code == 403, (path, refused.text)
    if has_body:
        assert f"`{scope}`" in refused.text
        assert path.startswith("/api/") or refused.json()["type"] == "/problems/not-permitted"


async def test_plain_requests_of_the_fast_path_need_their_scope_too(service: Service) -> None:
    task_id = await service.create_task()
    async with service.database.writes.begin() as session:
        await session.execute(update(ApiKey).values(scopes="webhooks"))

    answers = [
        await service.client.get(f"/v1/tasks/{task_id}"),
        await service.client.get("/v1/tasks"),
        await service.client.post("/v1/tasks", json={"prompt": "rain"}),
        await service.client.get(f"/v1/tasks/{NOBODY}"),
    ]

    assert [answer.status_code for answer in answers] == [403] * 4
    # What is not there, or somebody else's, is answered the same.
    assert answers[0].content == answers[3].content
    async with service.database.writes.begin() as session:
        await session.execute(update(ApiKey).values(scopes="submit"))
    assert (await service.client.post("/v1/tasks", json={"prompt": "rain"})).status_code == 202
    async with service.database.writes.begin() as session:
        await session.execute(update(ApiKey).values(scopes="read"))
    assert len((await service.client.get("/v1/tasks")).json()["items"]) == 2


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_links_to_read_an_order_by_are_not_for_who_may_not_read(service: Service, method: str) -> None:
    path = "/v1/tasks" + (f"/{uuid4()}" if method == "PUT" else "")
    async with _client(service, "orders", scopes="submit") as ordering:
        refused = await ordering.request(method, path, json={"prompt": "rain", "links": {}})
        plain = await ordering.request(method, path, json={"prompt": "rain"})
        again = await ordering.request(method, path, json={"prompt": "rain", "links": {"scope": ["audio"]}})

    assert [each.status_code for each in (refused, plain, again)] == [403, 202, 403]
    assert "`read`" in refused.text
    async with service.database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(Task)) == 1


async def test_admin_reads_everybodys_tasks_only_with_the_scope_to_read(service: Service) -> None:
    task_id = await service.create_task()

    async with (
        _client(service, "both", is_admin=True, scopes="read") as both,
        _client(service, "admin", is_admin=True, scopes="") as admin,
    ):
        answers = [await each.get(f"/v1/tasks/{task_id}") for each in (both, admin)]

    assert [answer.status_code for answer in answers] == [200, 403]


async def test_expired_key_is_refused_as_an_unknown_one_at_every_entrance(service: Service) -> None:
    task_id = await service.create_task()
    paths = f"/v1/tasks/{task_id}", "/v1/tasks", "/v1/usage", "/api/v1/generate/credit", "/v1/webhook-endpoints"
    async with browser_of(service) as browser, _client(service, "rotated") as rotated:
        rotation = await _rotate(service, "rotated")
        before = [(await service.client.get(path)).status_code for path in paths[:3]]
        unknown = [await service.anonymous.get(path, headers={"Authorization": "Bearer x"}) for path in paths]
        await _expire(service, timedelta())
        expired = [await service.client.get(path) for path in paths]
        ordered = await service.client.post("/v1/tasks", json={"prompt": "rain"})
        page, signed_in = await browser.get("/console/tasks"), await browser.post("/console/sign-in", data=_KEY)
        former = await rotated.get("/v1/usage")

    assert before == [200] * 3
    assert [answer.status_code for answer in (*expired, ordered)] == [401] * 6
    assert [answer.content for answer in expired] == [answer.content for answer in unknown]
    assert (page.status_code, signed_in.status_code) == (303, 401)
    # A rotation keeps the time at which the caller's keys expire.
    assert former.status_code == 401
    assert (await service.anonymous.get("/v1/usage", headers=_bearer(rotation))).status_code == 401


async def test_key_works_until_it_expires(service: Service) -> None:
    await _expire(service, timedelta(hours=1))

    assert (await service.client.get("/v1/usage")).status_code == 200


async def test_stream_ends_when_its_key_may_not_read_any_more(service: Service) -> None:
    service.services.waiters.check_keys_every = timedelta(milliseconds=10)
    ended = list[list[dict[str, str]]]()
    for change in ({"expires_at": MORNING}, {"scopes": "submit"}):
        async with _client(service, f"reader {len(ended)}") as reader:
            task = (await reader.post("/v1/tasks", json={"prompt": "rain"})).json()
            streaming = reader.stream("GET", f"/v1/tasks/{task['id']}/events", headers={"Accept": "text/event-stream"})
            async with streaming as response:
                blocks = sse_blocks(response)
                assert (await anext(blocks))["event"] == "task.created"
                async with service.database.writes.begin() as session:
                    await session.execute(update(ApiKey).where(ApiKey.name != "tests").values(**change))
                ended.append([block async for block in blocks])

    assert [blocks[-1] for blocks in ended] == [{"retry": "1000"}] * 2


async def test_admin_without_the_scope_to_read_sees_no_ledger_in_the_console(service: Service) -> None:
    task_id = await service.create_task()
    async with service.database.reads() as session:
        key_id = await session.scalar(select(ApiKey.id).where(ApiKey.name == "tests"))
    shown = []
    for name, scopes in (("reads", "read"), ("does not", "")):
        async with _client(service, name, is_admin=True, scopes=scopes) as admin:
            key = admin.headers["Authorization"].removeprefix("Bearer ")
        async with browser_of(service, key) as browser:
            shown.append((await browser.get(f"/console/keys/{key_id}")).raise_for_status().text)

    assert [task_id in page for page in shown] == [True, False]
    assert ["Change the budget" in page for page in shown] == [True, True]


async def test_pages_and_their_buttons_need_their_scopes(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    page, form = f"/console/tasks/{task.id}", {"csrf_token": ""}
    async with browser_of(service) as browser:
        whole = (await browser.get(page)).text
        await _set_scopes(service, "read")
        token = re.findall('name="csrf_token" value="([^"]+)"', (await browser.get(page)).text)[0]
        form = {"csrf_token": token}
        reading = (await browser.get(page)).text
        posts = ["delete", "cancel", "order-again", f"deliveries/{NOBODY}/resend", "resolve"]
        refused = [await browser.post(f"{page}/{post}", data=form) for post in posts]
        webhooks = [await browser.get(path) for path in ("/console/webhooks", f"/console/deliveries/{NOBODY}")]
        await _set_scopes(service, "submit,webhooks")
        unread = [await browser.get(path) for path in (page, "/console/tasks", f"/console/live/tasks/{task.id}")]
        allowed = await browser.get("/console/webhooks")

    for button in ("/delete", "/order-again"):
        assert button in whole
        assert button not in reading
    assert 'href="/console/webhooks"' not in reading
    assert [answer.status_code for answer in (*refused, *webhooks, *unread)] == [403] * 10
    assert "no scope `submit`" in refused[0].text
    assert "no scope `read`" in unread[0].text
    assert allowed.status_code == 200


_KEY = {"key": "the-key-of-a-caller-in-tests"}


def _routes(*apps: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    for app in apps:
        for context in iter_route_contexts(app.routes):
            if isinstance(context.original_route, APIRoute):
                yield str(context.path), context.original_route


def _scopes_of(route: APIRoute) -> set[str]:
    """The scopes that a route needs, somewhere in the tree of its dependencies."""

    def scopes_of(dependant: Dependant) -> set[str]:
        return set(dependant.own_oauth_scopes or ()).union(*map(scopes_of, dependant.dependencies))

    return scopes_of(route.dependant)


@asynccontextmanager
async def _client(service: Service, name: str, **terms: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with service.database.writes.begin() as session:
        key = await create_key(session, name, MORNING, **terms)
    async with httpx.AsyncClient(base_url=service.client.base_url, headers=_bearer(key), trust_env=False) as client:
        yield client


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def _rotate(service: Service, name: str) -> str:
    async with service.database.transaction() as (session, now):
        key_id = await session.scalar(ApiKey.__table__.select().where(ApiKey.name == name))
        return str(await rotate_key(session, str(key_id), now, OVERLAP))


async def _expire(service: Service, after: timedelta) -> None:
    """Let every key expire after this time."""
    async with service.database.transaction() as (session, now):
        await session.execute(update(ApiKey).values(expires_at=now + after))


async def _set_scopes(service: Service, scopes: str) -> None:
    async with service.database.writes.begin() as session:
        await session.execute(update(ApiKey).values(scopes=scopes))
