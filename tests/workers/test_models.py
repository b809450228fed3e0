"""What is sent for a model that was ordered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Json
from tests.support.service import Service, serve_with_sandbox
from tests.support.settings import UPSTREAM_KEY


@pytest.fixture
async def aliased(database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """The service with its workers; V6 is sent for V5, and V4, which nobody may order any more, as it is."""
    async with serve_with_sandbox(database_url, tmp_path, models="V6,V5=V6") as service:
        yield service


async def test_model_that_was_ordered_is_shown_and_its_alias_is_sent(aliased: Service) -> None:
    default, old = [await aliased.create_task(**fields) for fields in ({}, {"model": "V5"})]
    tasks = [await aliased.until(each, lambda task: bool(task["completed_at"])) for each in (default, old)]
    listed = (await aliased.client.get("/v1/tasks", params={"model": "V5"})).json()["items"]
    record = (await aliased.client.get("/api/v1/generate/record-info", params={"taskId": old})).json()["data"]
    document = (await aliased.client.get("/openapi.json")).json()

    assert [(task["model"], task["status"]) for task in tasks] == [("V6", "succeeded"), ("V5", "succeeded")]
    assert [task["id"] for task in listed] == [old]
    assert json.loads(record["param"])["model"] == record["type"] == "V5"
    assert await _sent(aliased, *tasks) == ["V6", "V6"]
    assert document["components"]["schemas"]["TaskCreate"]["properties"]["model"]["enum"] == ["V6", "V5", None]


async def test_model_that_is_orderable_no_more_is_sent_as_it_was_ordered(aliased: Service) -> None:
    refused = await aliased.client.post("/v1/tasks", json={"prompt": "soft rain", "model": "V5_5"})
    task = await aliased.add_task(model="V5_5")

    done = await aliased.until(task.id, lambda task: bool(task["completed_at"]))

    assert refused.status_code == 422
    assert await _sent(aliased, done) == ["V5_5"]


async def _sent(service: Service, *tasks: Json) -> list[Any]:
    """The models that the upstream was asked for."""
    key = {"Authorization": f"Bearer {UPSTREAM_KEY}"}
    path = "/api/v1/generate/record-info"
    asked = [{"taskId": task["upstream_task_id"]} for task in tasks]
    records = [(await service.upstream.get(path, params=each, headers=key)).json()["data"] for each in asked]
    return [json.loads(record["param"])["model"] for record in records]
