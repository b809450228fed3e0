"""The list of tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response

from app.console.mount import PATH
from app.console.rendering import PagesDep
from app.console.session import VisitorDep
from app.tasks.schemas import TaskFilters
from app.tasks.service import TaskService
from app.web.provided import provided
from app.web.routing import Router

router = Router(prefix=PATH)
TasksDep = Annotated[TaskService, provided(TaskService)]


@router.get("/tasks")
async def show_tasks(request: Request, pages: PagesDep, visitor: VisitorDep, tasks: TasksDep) -> Response:
    """The newest tasks that the visitor may see."""
    found, _ = await tasks.list(visitor.caller, TaskFilters(), {}, None, 50)
    return pages.render(request, "tasks.html", tasks=found)
