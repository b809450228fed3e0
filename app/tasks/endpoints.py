"""Ordering sounds and seeing what became of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import eq, gt, lt
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import ColumnElement

from app.auth import Caller, CallerDep
from app.config import Settings
from app.db import Database, DatabaseDep, ReaderDep, Session
from app.edge import Text
from app.errors import InvalidRequest, NotFound, TaskAlreadyFinal, TaskNotFinal
from app.models import Callback, Charge, Task, TaskStatus
from app.paging import Cursor, Limit, bad_cursor, decode_cursor, encode_cursor, link_next
from app.problems import says
from app.tasks import repository
from app.tasks.idempotency import claim_key, fingerprint, read_key
from app.tasks.news import ENDINGS, receive_task_news
from app.tasks.schemas import (
    CallbackPage,
    CallbackRead,
    CanceledTask,
    EventPage,
    EventRead,
    TaskCreate,
    TaskPage,
    TaskRead,
    read_task,
)
from app.tasks.service import TaskLife
from app.tasks.state import FINAL
from app.webhooks.documents import described
from app.webhooks.service import check_receiver

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])
told_of_the_end = described(receive_task_news, ENDINGS, path="{{$request.body#/webhook_url}}", verb="callBack")


class TaskFilters(BaseModel):
    """Which tasks to list, and where to go on."""

    status: TaskStatus | None = None
    model: Text | None = None
    created_after: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    limit: Limit = 50
    cursor: Cursor = None


async def get_life(request: Request) -> TaskLife:
    """The writer of tasks."""
    life: TaskLife = request.app.state.life
    return life


LifeDep = Annotated[TaskLife, Depends(get_life)]


async def find_own_task(session: ReaderDep, caller: CallerDep, task_id: Annotated[str, Path()]) -> Task:
    """The caller's task of this id. Raises NotFound alike for what is absent and what is another's."""
    return owned(await repository.find_task(session, task_id), caller)


OwnTask = Annotated[Task, Depends(find_own_task)]


def owned(task: Task | None, caller: Caller) -> Task:
    """The task, if this caller may see it. Raises NotFound."""
    if task is None or not (caller.is_admin or task.api_key_id == caller.api_key_id):
        raise NotFound
    return task


@router.post("", status_code=202, operation_id="createTask", callbacks=told_of_the_end.routes)
async def create_task(
    response: Response,
    database: DatabaseDep,
    life: LifeDep,
    caller: CallerDep,
    order: TaskCreate,
    request: Request,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> TaskRead:
    """Order a sound. The task is stored before this returns; it is sent upstream by itself."""
    settings: Settings = request.app.state.settings
    _check_model(order, settings.models)
    if order.webhook_url is not None:
        check_receiver(order.webhook_url, settings.egress_allow, "#/webhook_url")
    key = read_key(idempotency_key)
    async with database.writes.begin() as session:
        task, is_replayed = await _create_once(session, database, life, caller, order, key)
        positions = await repository.queue_positions(session, [task])
    response.headers["Location"] = f"/v1/tasks/{task.id}"
    response.headers["Cache-Control"] = "no-store"
    response.headers["Retry-After"] = "5"
    if is_replayed:
        response.headers["Idempotency-Replayed"] = "true"
        response.status_code = 200 if task.status in FINAL else 202
    return read_task(task, positions)


async def _create_once(
    session: Session, database: Database, life: TaskLife, caller: Caller, order: TaskCreate, key: str | None
) -> tuple[Task, bool]:
    now = await database.now(session)
    if key is None:
        return life.create(session, caller.api_key_id, order, now), False
    model = order.model or life.default_model
    row, task = await claim_key(session, caller.api_key_id, key, fingerprint(order, model), now)
    if task is not None:
        return task, True
    task = life.create(session, caller.api_key_id, order, now)
    row.task_id = task.id
    return task, False


@router.get("", operation_id="listTasks")
async def list_tasks(
    request: Request,
    response: Response,
    session: ReaderDep,
    caller: CallerDep,
    filters: Annotated[TaskFilters, Query()],
) -> TaskPage:
    """Your tasks, newest first; `metadata.<key>=<value>` narrows them to those that carry it."""
    where = [*_conditions(filters), *_label_conditions(request)]
    if not caller.is_admin:
        where.append(Task.api_key_id == caller.api_key_id)
    tasks = await repository.list_tasks(session, where, _position(filters.cursor), filters.limit + 1)
    page, cursor = tasks[: filters.limit], None
    if len(tasks) > filters.limit:
        cursor = encode_cursor(page[-1].created_at.isoformat(), page[-1].id)
    link_next(request, response, cursor)
    positions = await repository.queue_positions(session, page)
    return TaskPage(items=[read_task(task, positions) for task in page], next_cursor=cursor)


@router.get("/{task_id}", operation_id="getTask", response_model=TaskRead)
async def get_task(request: Request, response: Response, session: ReaderDep, task: OwnTask) -> TaskRead | Response:
    """One task as it stands."""
    etag = f'W/"{task.version}"'
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = "private, no-cache"
    if _is_known(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=dict(response.headers))
    return read_task(task, await repository.queue_positions(session, [task]))


@router.post("/{task_id}/cancel", operation_id="cancelTask", responses=says(TaskAlreadyFinal))
async def cancel_task(database: DatabaseDep, life: LifeDep, caller: CallerDep, task_id: str) -> CanceledTask:
    """Stop a task. Before it was sent nothing is charged; afterwards the upstream may charge it all the same."""
    async with database.writes.begin() as session:
        task = owned(await repository.lock_task(session, task_id), caller)
        life.cancel(session, task, await database.now(session))
    return CanceledTask(**read_task(task, {}).model_dump(), charge_may_apply=task.charge is not Charge.none)


@router.delete("/{task_id}", operation_id="deleteTask", status_code=204, responses=says(TaskNotFinal))
async def delete_task(database: DatabaseDep, caller: CallerDep, task_id: str) -> None:
    """Erase a task that has ended: its prompt, its clips and everything that was said about it."""
    async with database.writes.begin() as session:
        task = owned(await repository.lock_task(session, task_id), caller)
        if task.status not in FINAL:
            raise TaskNotFinal
        await session.delete(task)


@router.get("/{task_id}/events", operation_id="listTaskEvents")
async def list_events(
    request: Request,
    response: Response,
    session: ReaderDep,
    task: OwnTask,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> EventPage:
    """What happened to a task, oldest first."""
    position = decode_cursor(cursor, 1)
    after = _version(position[0]) if position else 0
    events = await repository.list_events(session, task.id, after, limit + 1)
    page, following = events[:limit], None
    if len(events) > limit:
        following = encode_cursor(str(page[-1].version))
    link_next(request, response, following)
    return EventPage(items=[EventRead.model_validate(event) for event in page], next_cursor=following)


@router.get("/{task_id}/callbacks", operation_id="listTaskCallbacks")
async def list_callbacks(
    request: Request,
    response: Response,
    session: ReaderDep,
    task: OwnTask,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> CallbackPage:
    """What the upstream told us of a task, as received, oldest first; secrets are blotted out."""
    position = decode_cursor(cursor, 1)
    callbacks = await repository.list_callbacks(session, task.id, position[0] if position else "", limit + 1)
    page, following = callbacks[:limit], None
    if len(callbacks) > limit:
        following = encode_cursor(page[-1].id)
    link_next(request, response, following)
    return CallbackPage(items=[_read_callback(callback) for callback in page], next_cursor=following)


def _check_model(order: TaskCreate, models: Sequence[str]) -> None:
    if order.model is not None and order.model not in models:
        detail = f"must be one of {', '.join(models)}"
        raise InvalidRequest(errors=[{"pointer": "#/model", "detail": detail}])


def _conditions(filters: TaskFilters) -> list[ColumnElement[bool]]:
    asked: list[tuple[Callable[[Any, Any], Any], Any, object]] = [
        (eq, Task.status, filters.status),
        (eq, Task.model, filters.model),
        (gt, Task.created_at, filters.created_after),
        (lt, Task.created_at, filters.created_before),
    ]
    return [compare(column, value) for compare, column, value in asked if value is not None]


def _label_conditions(request: Request) -> list[ColumnElement[bool]]:
    asked = request.query_params.multi_items()
    labels = [(name.removeprefix("metadata."), value) for name, value in asked if name.startswith("metadata.")]
    return [Task.labels[name].as_string() == value for name, value in labels]


def _position(cursor: str | None) -> tuple[datetime, str] | None:
    position = decode_cursor(cursor, 2)
    if position is None:
        return None
    try:
        created_at = datetime.fromisoformat(position[0])
    except ValueError:
        raise bad_cursor() from None
    if created_at.tzinfo is None:
        raise bad_cursor()
    return created_at, position[1]


def _version(text: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise bad_cursor()
    return int(text)


def _is_known(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags or `*`, compared weakly."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def _read_callback(callback: Callback) -> CallbackRead:
    try:
        body, encoded = callback.body.decode(), None
    except UnicodeDecodeError:
        body, encoded = None, base64.b64encode(callback.body).decode()
    return CallbackRead(
        id=callback.id,
        received_at=callback.received_at,
        headers=callback.headers,
        body=body,
        body_base64=encoded,
        outcome=callback.outcome,
    )
