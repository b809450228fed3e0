"""Another key's things read exactly like things that do not exist, on every route there is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.auth.api_keys import revoke_key
from app.enums import CallbackOutcome, TaskStatus
from app.models import ApiKey, Callback, Clip
from tests.api.document import operations
from tests.support.clock import MORNING
from tests.support.service import Service, client_with_key, serve
from tests.support.settings import KEY

CANARY = "canary-4711"
# What a path may ask for, and the list in which its owner finds one.
LISTS = {
    "task_id": "/v1/tasks",
    "endpoint_id": "/v1/webhook-endpoints",
    "delivery_id": "/v1/deliveries",
}
OF_ADMINS = "/v1/keys/"
BODIES: dict[str, Any] = {"recover": {"since": "2026-01-01T00:00:00Z"}}
STRANGE_IDS = ["0" * 32, "x", "%F0%9F%98%80", "a" * 400, "0%27--", "..%2F..", "01a2044C4ED17520A475C896C407AF74"]


@dataclass(frozen=True)
class Call:
    """One operation that asks for something by its id."""

    method: str
    path: str
    id_name: str

    def at(self, id_: str) -> tuple[str, str]:
        path = self.path.replace(f"{{{self.id_name}}}", id_)
        return self.method, re.sub(r"\{[^}]*}", "0", path)

    async def ask(self, client: httpx.AsyncClient, id_: str) -> httpx.Response:
        method, path = self.at(id_)
        body = BODIES.get(path.rpartition("/")[2], {})
        return await client.request(method, path, json=body if method in ("POST", "PATCH") else None)


def calls(*, of_admins: bool = False) -> Iterator[Call]:
    """
    Every operation with an id in its path, those of later releases too, but for the one that gives the id.

    `of_admins`: those that only admins may call.
    """
    for method, path, operation in operations():
        names = re.findall(r"\{([^}]*_id)}", path)
        is_ours = operation.get("security") and operation["operationId"] != "putTask"
        if names and is_ours and path.startswith(OF_ADMINS) == of_admins:
            yield Call(method, path, names[0])


@pytest.fixture
async def stranger(service: Service) -> httpx.AsyncClient:
    """A client with another key."""
    return await client_with_key(service, "stranger")


async def plant(service: Service) -> dict[str, str]:
    """Something of each kind for the service's own client, marked; the ids by the name that paths give them."""
    await service.client.post("/v1/webhook-endpoints", json={"url": f"https://example.com/{CANARY}"})
    task = await service.add_task(TaskStatus.succeeded, prompt=CANARY, labels={"user": CANARY})
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=task.id, index=0, title=CANARY, upstream_audio_url=CANARY, created_at=MORNING))
        outcome = CallbackOutcome.applied
        body = CANARY.encode()
        session.add(Callback(task_id=task.id, received_at=MORNING, headers={}, body=body, outcome=outcome))
    endpoint = (await service.client.get("/v1/webhook-endpoints")).json()["items"][0]["id"]
    await service.client.post(f"/v1/webhook-endpoints/{endpoint}/test")
    delivery = (await service.client.get("/v1/deliveries")).json()["items"][0]["id"]
    return {"task_id": task.id, "endpoint_id": endpoint, "delivery_id": delivery}


async def test_anothers_things_read_like_what_does_not_exist(service: Service, stranger: httpx.AsyncClient) -> None:
    planted = await plant(service)

    async with stranger:
        for call in calls():
            answers = [await call.ask(stranger, id_) for id_ in (planted[call.id_name], *STRANGE_IDS)]
            assert {answer.status_code for answer in answers} == {404}, call
            assert len({answer.content for answer in answers}) == 1, call
            assert len({tuple(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1, call


async def test_nothing_of_another_key_is_listed_or_counted(service: Service, stranger: httpx.AsyncClient) -> None:
    planted = await plant(service)

    async with stranger:
        lists = [
            await stranger.get(path)
            for method, path, operation in operations()
            if method == "GET" and "{" not in path and operation.get("security") and path != "/v1/credits"
        ]
        narrowed = await stranger.get("/v1/deliveries", params={"task_id": planted["task_id"]})

    everything = "".join(answer.text for answer in [*lists, narrowed])
    assert CANARY not in everything
    assert not [id_ for id_ in planted.values() if id_ in everything]
    assert narrowed.json()["items"] == []


async def test_what_is_for_admins_is_refused_to_others_whatever_it_is_about(
    service: Service, stranger: httpx.AsyncClient
) -> None:
    async with service.database.reads() as session:
        key_ids = (await session.scalars(select(ApiKey.id))).all()

    async with stranger:
        for call in calls(of_admins=True):
            method, paths = call.method, [call.at(id_)[1] for id_ in (*key_ids, *STRANGE_IDS[:4])]
            answers = [await stranger.request(method, path, json={"limit": 1, "window": "day"}) for path in paths]
            assert {answer.status_code for answer in answers} == {403}, call
            assert len({answer.content for answer in answers}) == 1, call


async def test_planted_things_are_seen_by_their_owner(service: Service) -> None:
    planted = await plant(service)

    seen = {name: (await service.client.get(path)).text for name, path in LISTS.items()}

    assert all(planted[name] in text for name, text in seen.items())


async def test_admin_key_reads_all(service: Service) -> None:
    service.services.clips.audio_wait = timedelta(0)
    planted = await plant(service)

    async with await client_with_key(service, "admin", is_admin=True) as admin:
        seen = {name: (await admin.get(path)).text for name, path in LISTS.items()}
        reads = [(call, await call.ask(admin, planted[call.id_name])) for call in calls() if call.method == "GET"]

    assert all(planted[name] in text for name, text in seen.items())
    refused = {call.path for call, answer in reads if answer.status_code != 200 and "{index}" not in call.path}
    assert refused == {"/v1/webhook-endpoints/{endpoint_id}/secret"}


async def test_admin_key_changes_nothing_of_others(service: Service) -> None:
    planted = await plant(service)

    async with await client_with_key(service, "admin", is_admin=True) as admin:
        for call in calls():
            if call.method != "GET":
                answers = [await call.ask(admin, id_) for id_ in (planted[call.id_name], "0" * 32)]
                assert {answer.status_code for answer in answers} == {404}, call
                assert len({answer.content for answer in answers}) == 1, call

    seen = {name: (await service.client.get(path)).text for name, path in LISTS.items()}
    assert all(planted[name] in text for name, text in seen.items())


async def test_no_key_or_a_wrong_one_is_401_everywhere(service: Service) -> None:
    planted = await plant(service)
    bad = ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"]

    for call in [*calls(), *calls(of_admins=True)]:
        method, path = call.at(planted.get(call.id_name, "0" * 32))
        answers = [
            await service.client.request(method, path, headers=[(b"Authorization", value.encode("latin-1"))])
            for value in bad
        ]
        assert {answer.status_code for answer in answers} == {401}, call
        assert len({answer.content for answer in answers}) == 1, call


async def test_revoked_key_is_refused_at_once_by_every_replica(service: Service) -> None:
    async with serve(service.database.url) as replica, await client_with_key(service, "leaver") as client:
        bases = [str(service.client.base_url), str(replica.client.base_url)]
        before = [(await client.get(f"{base}/v1/tasks")).status_code for base in bases]
        async with service.database.writes.begin() as session:
            leaver = (await session.scalars(select(ApiKey).where(ApiKey.name == "leaver"))).one()
            await revoke_key(session, leaver.id, MORNING)
        after = [(await client.get(f"{base}/v1/tasks")).status_code for base in bases]

    assert (before, after) == ([200, 200], [401, 401])
