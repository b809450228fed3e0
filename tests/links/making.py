"""Tasks with everything that links must keep back, and links to them."""

from typing import Any

import httpx

from app.enums import ErrorCode, TaskStatus
from app.models import Clip, Task
from tests.support.api import Json
from tests.support.clock import MORNING
from tests.support.service import Service

WORDS = "words of the upstream"
OWNERS = "of the owner alone"
ALL = ["task", "events", "audio"]


async def plant(service: Service, status: TaskStatus = TaskStatus.succeeded, clips: int = 2) -> Task:
    """Add a task of the client's key with marks on all that links keep back."""
    error = {"error_code": ErrorCode.content_rejected, "error_message": WORDS, "upstream_code": 400}
    is_failed = status is TaskStatus.failed
    marked = {"labels": {"user": OWNERS}, "webhook_url": f"https://example.com/{OWNERS.replace(' ', '-')}"}
    task = await service.add_task(status, **marked, **(error if is_failed else {}))
    async with service.database.writes.begin() as session:
        for index in range(clips):
            urls = {"upstream_audio_url": f"https://cdn.example/{index}.mp3", "image_url": "https://cdn.example/0.png"}
            session.add(Clip(task_id=task.id, index=index, created_at=MORNING, duration=1.5, **urls))
    return task


async def make_links(service: Service, task_id: str, **order: Any) -> Json:
    """Links to a task of the client's key."""
    answer = await service.client.post(f"/v1/tasks/{task_id}/links", json=order)
    assert answer.status_code == 201, answer.text
    links: Json = answer.json()
    return links


def facts_of(answer: httpx.Response) -> tuple[Any, ...]:
    """All of a response that could tell it from another: but for its time and its number."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    return answer.status_code, sorted(headers.items()), answer.content
