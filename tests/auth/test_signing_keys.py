"""Secret keys that differ between processes are told of, and a rotation by the recipe loses nothing."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import httpx
from structlog.testing import capture_logs

from app.health.secret_keys import check_secret_keys
from tests.support.service import Service, serve

OLD, NEW, STRANGE = "the-old-key-of-the-service", "the-new-key-of-the-service", "a-strange-key-of-a-service"
ENDPOINT = {"url": "https://hooks.example.com/sounds"}
RECIPE = [(OLD,), (OLD, NEW), (NEW, OLD)]


async def test_rotation_by_the_recipe_loses_nothing_on_any_replica(database_url: str) -> None:
    secrets: list[list[str]] = []
    states: list[dict[str, str]] = []
    for before, after in pairwise(RECIPE):
        # In the middle of a rolling restart processes with either list run beside each other.
        async with AsyncExitStack() as running:
            replicas = [await running.enter_async_context(_serve(database_url, keys)) for keys in (before, after)]
            if not secrets:
                endpoint = (await replicas[0].client.post("/v1/webhook-endpoints", json=ENDPOINT)).json()["id"]
            secrets += [await _secrets(each, endpoint) for each in replicas]
            states += [await _check(each) for each in replicas]
            for one, other in (replicas, replicas[::-1]):
                task = await one.add_task()
                answer = await other.client.post(one.callback_path(task.id), json={})
                assert answer.status_code == 200
                link = httpx.URL(one.services.signed_urls.audio(task.id, 0)).params
                assert other.services.signed_urls.is_valid(task.id, 0, link["expires"], link["signature"])

    assert all(secret == secrets[0] for secret in secrets)
    assert {state["status"] for state in states} == {"ok"}


async def test_secret_is_made_with_the_new_key_once_its_owner_rotates_it(database_url: str) -> None:
    async with _serve(database_url, (OLD,)) as service:
        endpoint = (await service.client.post("/v1/webhook-endpoints", json=ENDPOINT)).json()["id"]
        before = await _secrets(service, endpoint)
    async with _serve(database_url, (NEW, OLD)) as service:
        await service.client.post(f"/v1/webhook-endpoints/{endpoint}/rotate-secret")
        await service.client.post("/v1/webhook-secret/rotate")
        rotated = await _secrets(service, endpoint)
    async with _serve(database_url, (NEW,)) as service:
        after, check = await _secrets(service, endpoint), await _check(service)

    assert before != rotated == after
    assert check["status"] == "ok"


async def test_secrets_that_a_dropped_key_has_changed_are_counted_until_they_are_fetched(database_url: str) -> None:
    async with _serve(database_url, (OLD,)) as service:
        endpoint = (await service.client.post("/v1/webhook-endpoints", json=ENDPOINT)).json()["id"]
        await _secrets(service, endpoint)
    async with _serve(database_url, (NEW, OLD)):
        pass
    with capture_logs() as lines:
        async with _serve(database_url, (NEW,)) as service:
            lost = await _check(service)
    async with _serve(database_url, (NEW,)) as service:
        await _secrets(service, endpoint)
        fetched = await _check(service)

    assert lost["status"] == "degraded"
    assert lost["detail"].startswith("2 webhook secrets were made with a key that SOUNDPOST_SECRET_KEYS has lost")
    assert [line["problem"] for line in lines if line["event"] == "secret_keys_incomplete"] == [lost["detail"]]
    assert fetched["status"] == "ok"


async def test_processes_with_other_keys_are_told_of_each_other(database_url: str) -> None:
    with capture_logs() as lines:
        async with _serve(database_url, (OLD,)) as first, _serve(database_url, (STRANGE,)) as second:
            checks = [await _check(each) for each in (first, second)]
            ready = await second.client.get("/readyz")
            names = [each.services.keyring.signer for each in (first, second)]

    assert [check["status"] for check in checks] == ["degraded", "degraded"]
    assert (
        f"another process signs with the key {names[1]}, which is not in SOUNDPOST_SECRET_KEYS" in checks[0]["detail"]
    )
    assert f"SOUNDPOST_SECRET_KEYS has lost the key {names[0]}" in checks[1]["detail"]
    assert ready.status_code == 200
    assert "secret_keys_do_not_match" in {line["event"] for line in lines}
    assert OLD not in str(checks)
    assert STRANGE not in str(checks)


def _serve(database_url: str, keys: Sequence[str]) -> Any:
    return serve(database_url, secret_keys=",".join(keys))


async def _secrets(service: Service, endpoint_id: str) -> list[str]:
    paths = f"/v1/webhook-endpoints/{endpoint_id}/secret", "/v1/webhook-secret"
    return [(await service.client.get(path)).raise_for_status().json()["secret"] for path in paths]


async def _check(service: Service) -> Any:
    # Not through /readyz, which keeps its result for a second.
    return (await check_secret_keys(service.database, service.services.keyring)).model_dump()
