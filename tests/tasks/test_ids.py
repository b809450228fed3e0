"""The id of a task is a UUID, and however a caller writes it, it is the same task; in answers it is written one way."""

from typing import Any

import httpx
import pytest

from app.enums import TaskStatus
from app.models import Clip
from app.web.fields import as_id
from tests.api.document import operations
from tests.support.clock import MORNING
from tests.support.service import Service

HEX = "019a6c1e7b7f7d0e8c5a2f4b6d8e0a1c"
DASHED = "019a6c1e-7b7f-7d0e-8c5a-2f4b6d8e0a1c"


@pytest.mark.parametrize("text", [HEX, HEX.upper(), DASHED, DASHED.upper(), "019A6c1e-7b7f-7D0E-8c5a-2f4b6d8e0a1C"])
def test_uuid_in_any_spelling_is_one_id(text: str) -> None:
    assert as_id(text) == HEX


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", HEX[1:], HEX + "0", HEX + "\n", "g" + HEX[1:], f"{{{DASHED}}}", f"urn:uuid:{DASHED}"),
        *(DASHED.replace("-", "", 1), "-".join(HEX), "٠" * 32),
    ],
)
def test_other_text_is_no_id(text: str) -> None:
    assert as_id(text) is None


async def test_every_route_takes_the_id_of_a_task_in_any_spelling(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=task.id, index=0, given_up_at=MORNING, created_at=MORNING))
    paths = [path for method, path, _ in operations() if method == "GET" and path.startswith("/v1/tasks/{task_id}")]

    for path in paths:
        answers = [await _get(service, path, spelling) for spelling in _spellings(task.id)]
        assert len({(answer.status_code, answer.content) for answer in answers}) == 1, path
        assert answers[0].status_code != 404 or "{index}" in path, path
    assert len(paths) >= 7


async def test_change_of_a_task_takes_its_id_in_any_spelling(service: Service) -> None:
    task_id = await service.create_task()
    *_, dashed = _spellings(task_id)

    canceled = await service.client.post(f"/v1/tasks/{dashed}/cancel")
    deleted = await service.client.delete(f"/v1/tasks/{dashed}")

    assert (canceled.status_code, canceled.json()["id"]) == (200, task_id)
    assert (deleted.status_code, (await service.client.get(f"/v1/tasks/{task_id}")).status_code) == (204, 404)


async def test_filter_and_the_vendors_query_take_the_id_in_any_spelling(service: Service) -> None:
    task_id = await service.create_task(webhook_url="https://example.com/hook")
    await service.client.post(f"/v1/tasks/{task_id}/cancel")

    for spelling in _spellings(task_id):
        deliveries = (await service.client.get("/v1/deliveries", params={"task_id": spelling})).json()["items"]
        record = (await service.client.get("/api/v1/generate/record-info", params={"taskId": spelling})).json()
        assert ([each["task_id"] for each in deliveries], record["data"]["taskId"]) == ([task_id], task_id)


async def test_signed_link_opens_nothing_with_its_id_in_another_spelling(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=task.id, index=0, given_up_at=MORNING, created_at=MORNING))
    link = service.services.signed_urls.audio(task.id, 0)

    statuses = [
        (await service.anonymous.get(link.replace(task.id, spelling))).status_code for spelling in _spellings(task.id)
    ]

    assert statuses == [410, 401, 401]


async def _get(service: Service, path: str, task_id: str) -> httpx.Response:
    return await service.client.get(path.replace("{task_id}", task_id).replace("{index}", "0"))


def _spellings(task_id: str) -> list[Any]:
    dashed = "-".join((task_id[:8], task_id[8:12], task_id[12:16], task_id[16:20], task_id[20:]))
    return [task_id, task_id.upper(), dashed.upper()]
