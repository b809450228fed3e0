"""Behind a proxy that serves us under a path, what we say of our own paths leads back to us."""

import asyncio
import json

import pytest

from tests.support.service import Service, serve

BASE_URL = "https://gateway.example/sound/v2"


async def test_paths_begin_with_the_path_of_the_base_url(database_url: str) -> None:
    async with serve(database_url, base_url=f"{BASE_URL}/") as service:
        placed = [await service.client.post("/v1/tasks", json={"prompt": "rain"}) for _ in range(2)]
        page = await service.client.get("/v1/tasks?limit=1")
        endpoint = await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/hook"})
        absent = await service.client.get("/v1/tasks/nothing")
        head = await service.client.head("/v1/tasks/nothing")
        refused = await service.anonymous.get("/api/v1/generate/credit")
        docs = (await service.client.get("/docs")).text
        document = (await service.client.get("/openapi.json")).json()
        unreadable = await _send(service, b"GET / HTTP/1.1\r\n\r\n")
        link = page.headers["link"]
        following = await service.client.get(link.partition(">")[0].removeprefix("</sound/v2"))

    task = placed[0].json()
    assert placed[0].headers["location"] == f"/sound/v2/v1/tasks/{task['id']}"
    assert endpoint.headers["location"] == f"/sound/v2/v1/webhook-endpoints/{endpoint.json()['id']}"
    assert link.startswith("</sound/v2/v1/tasks?limit=1&cursor=")
    assert [item["id"] for item in following.json()["items"]] == [task["id"]]
    assert absent.json()["type"] == "/sound/v2/problems/not-found"
    assert json.loads(unreadable.partition(b"\r\n\r\n")[2])["type"] == "/sound/v2/problems/unreadable-request"
    assert int(head.headers["content-length"]) == len(absent.content)
    assert refused.json() == {"code": 401, "msg": refused.json()["msg"], "data": None}
    assert 'data-document="/sound/v2/openapi.json"' in docs
    assert document["servers"] == [{"url": BASE_URL}]


@pytest.mark.parametrize("base_url", ["https://gateway.example", None])
async def test_without_a_path_nothing_is_added(database_url: str, base_url: str | None) -> None:
    async with serve(database_url, base_url=base_url) as service:
        placed = await service.client.post("/v1/tasks", json={"prompt": "rain"})
        absent = await service.client.get("/v1/tasks/nothing")
        document = (await service.client.get("/openapi.json")).json()

    assert placed.headers["location"] == f"/v1/tasks/{placed.json()['id']}"
    assert absent.json()["type"] == "/problems/not-found"
    assert "servers" not in document


async def _send(service: Service, data: bytes) -> bytes:
    url = service.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(data)
    received = await reader.read()
    writer.close()
    return received
