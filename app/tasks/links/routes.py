"""The route that gives out signed links to a task."""

from __future__ import annotations

from typing import Annotated

from app.auth.callers import ReadCaller
from app.signed_urls import SignedUrls
from app.tasks.links.schemas import LinksRead
from app.tasks.links.views import make_links
from app.tasks.order_schemas import LinksCreate
from app.tasks.schemas import TaskId
from app.tasks.service import TaskService
from app.web.provided import provided
from app.web.routing import Router

router = Router(prefix="/v1/tasks", tags=["tasks"])
TasksDep = Annotated[TaskService, provided(TaskService)]
SignedUrlsDep = Annotated[SignedUrls, provided(SignedUrls)]


@router.post(
    "/{task_id}/links",
    status_code=201,
    operation_id="createTaskLinks",
    summary="Create signed links to a task",
)
async def create_links(
    tasks: TasksDep, signed_urls: SignedUrlsDep, caller: ReadCaller, task_id: TaskId, body: LinksCreate
) -> LinksRead:
    """
    Make links by which a page in a browser follows one task and plays its audio without a key.

    They cannot be taken back one by one: they work until they expire, or until the task is deleted.
    """
    task = caller.require_owned(await tasks.get_row(caller, task_id))
    clips = [clip.index for clip in task.clips if clip.given_up_at is None]
    return make_links(signed_urls, task.id, clips, body)
