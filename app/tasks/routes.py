"""Ordering sounds and seeing what became of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import attrgetter, eq, gt, lt
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import ColumnElement

from app.auth.api_keys import Caller, CallerDep
from app.auth.rate_limit import spend
from app.config import Settings
from app.database.engine import DatabaseDep, ReaderDep, Session
from app.enums import Charge, TaskStatus
from app.errors import IdempotencyKeyReused, InvalidRequest, NotFound, TaskAlreadyFinal, TaskNotFinal, TooManyRequests
from app.models import Callback, Task
from app.tasks import repository
from app.tasks.erasing import erase
from app.tasks.idempotency import KeyDep, claim_key, fingerprint
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.payloads import FINAL_SUMMARIES, receive_task_webhook
from app.tasks.schemas import (
    CallbackPage,
    CallbackRead,
    CanceledTask,
    TaskCreate,
    TaskPage,
    TaskRead,
    read_task,
)
from app.tasks.transitions import FINAL
from app.tasks.waiting import TaskSnapshot, WaitDep, WaitersDep, snapshot_of
from app.web import Moment, RetryOnSerializationFailure, Text
from app.web.pagination import Cursor, Limit, bad_cursor, decode_cursor, encode_cursor, link_next
from app.web.problems import problem_responses
from app.webhooks.openapi import described
from app.webhooks.service import check_receiver

router = APIRouter(prefix="/v1/tasks", route_class=RetryOnSerializationFailure, tags=["tasks"])
told_of_the_end = described(
    receive_task_webhook, FINAL_SUMMARIES, path="{{$request.body#/webhook_url}}", verb="callBack"
)
CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": TaskRead, "description": "The task has ended already."},
    202: {"description": "The task is stored."},
    **problem_responses(IdempotencyKeyReused, TooManyRequests),
}
KNOWN: dict[int | str, dict[str, Any]] = {304: {"description": "The task is still the one of `If-None-Match`."}}


class TaskFilters(BaseModel):
    """Which tasks to list, and where to go on."""

    status: TaskStatus | SkipJsonSchema[None] = None
    model: Text | SkipJsonSchema[None] = None
    created_after: Moment | SkipJsonSchema[None] = None
    created_before: Moment | SkipJsonSchema[None] = None
    limit: Limit = 50
    cursor: Cursor = None


async def get_lifecycle(request: Request) -> TaskLifecycle:
    """The writer of tasks."""
    lifecycle: TaskLifecycle = request.app.state.lifecycle
    return lifecycle


LifecycleDep = Annotated[TaskLifecycle, Depends(get_lifecycle)]


async def find_own_task(session: ReaderDep, caller: CallerDep, task_id: Annotated[str, Path()]) -> Task:
    """The caller's task of this id. Raises NotFound alike for what is absent and what is another's."""
    return readable(await repository.find_task(session, task_id), caller)


OwnTask = Annotated[Task, Depends(find_own_task)]


def readable(task: Task | None, caller: Caller) -> Task:
    """The task, if this caller may see it. Raises NotFound."""
    if task is None or not caller.may_read(task.api_key_id):
        raise NotFound
    return task


def owned(task: Task | None, caller: Caller) -> Task:
    """The task, if this caller may change it. Raises NotFound."""
    if task is None or not caller.owns(task.api_key_id):
        raise NotFound
    return task


@router.post(
    "",
    status_code=202,
    operation_id="createTask",
    response_model=TaskRead,
    responses=CREATED,
    callbacks=told_of_the_end.routes,
)
async def create_task(
    database: DatabaseDep,
    lifecycle: LifecycleDep,
    caller: CallerDep,
    order: TaskCreate,
    request: Request,
    waiters: WaitersDep,
    wait: WaitDep,
    key: KeyDep,
) -> Response:
    """Order a sound. The task is stored before this returns; it is sent upstream by itself."""
    settings: Settings = request.app.state.settings
    _check_model(order, settings.models)
    if order.webhook_url is not None:
        check_receiver(order.webhook_url, settings.egress_allow, "#/webhook_url")
    async with database.writes.begin() as session:
        now = await database.now(session)
        kept = await claim_key(session, caller.api_key_id, key, fingerprint(order, lifecycle.default_model), now)
        quota = await spend(session, caller.api_key_id, settings.key_rate, now, is_free=kept.task is not None)
        task = kept.task or lifecycle.create(session, caller.api_key_id, order, now)
        kept.stands_for(task)
        positions = await repository.queue_positions(session, [task])
        snapshot = snapshot_of(read_task(task, positions, request.app.state.signed_urls))
        patience = await request.app.state.latency.seconds(session)
    headers = {"Location": f"/v1/tasks/{snapshot.task_id}", "Cache-Control": "no-store", **quota}
    if kept.task is not None:
        headers["Idempotency-Replayed"] = "true"
    return waiters.answer(snapshot, wait, attrgetter("is_final"), partial(_order_answer, headers, patience))


@router.get("", operation_id="listTasks")
async def list_tasks(
    request: Request,
    response: Response,
    session: ReaderDep,
    caller: CallerDep,
    filters: Annotated[TaskFilters, Query()],
) -> TaskPage:
    """Your tasks, newest first; `metadata.<key>=<value>` narrows them to those that carry it."""
    where = [*_conditions(filters), *_label_conditions(session, request)]
    if not caller.is_admin:
        where.append(Task.api_key_id == caller.api_key_id)
    tasks = await repository.list_tasks(session, where, _position(filters.cursor), filters.limit + 1)
    page, cursor = tasks[: filters.limit], None
    if len(tasks) > filters.limit:
        cursor = encode_cursor(page[-1].created_at.isoformat(), page[-1].id)
    link_next(request, response, cursor)
    positions = await repository.queue_positions(session, page)
    return TaskPage(
        items=[read_task(task, positions, request.app.state.signed_urls) for task in page], next_cursor=cursor
    )


@router.get("/{task_id}", operation_id="getTask", response_model=TaskRead, responses=KNOWN)
async def get_task(
    request: Request,
    session: ReaderDep,
    task: OwnTask,
    waiters: WaitersDep,
    wait: WaitDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One task as it stands. With `Prefer: wait`, once its version is not the known one, or else once it has ended."""
    snapshot = snapshot_of(
        read_task(task, await repository.queue_positions(session, [task]), request.app.state.signed_urls)
    )
    is_awaited = attrgetter("is_final") if if_none_match is None else partial(_is_other, if_none_match)
    return waiters.answer(snapshot, wait, is_awaited, partial(_read_answer, if_none_match))


@router.post("/{task_id}/cancel", operation_id="cancelTask", responses=problem_responses(TaskAlreadyFinal))
async def cancel_task(
    request: Request, database: DatabaseDep, lifecycle: LifecycleDep, caller: CallerDep, task_id: str
) -> CanceledTask:
    """Stop a task. Before it was sent nothing is charged; afterwards the upstream may charge it all the same."""
    async with database.writes.begin() as session:
        task = owned(await repository.lock_task(session, task_id), caller)
        lifecycle.cancel(session, task, await database.now(session))
    read = read_task(task, {}, request.app.state.signed_urls)
    return CanceledTask(**read.model_dump(), charge_may_apply=task.charge is not Charge.none)


@router.delete("/{task_id}", operation_id="deleteTask", status_code=204, responses=problem_responses(TaskNotFinal))
async def delete_task(database: DatabaseDep, caller: CallerDep, task_id: str) -> None:
    """Erase a task that has ended: its prompt, its clips with their audio, and everything that was said about it."""
    async with database.writes.begin() as session:
        task = owned(await repository.lock_task(session, task_id), caller)
        if task.status not in FINAL:
            raise TaskNotFinal
        await erase(session, task, await database.now(session))


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


def _label_conditions(session: Session, request: Request) -> list[ColumnElement[bool]]:
    asked = request.query_params.multi_items()
    labels = [(name.removeprefix("metadata."), value) for name, value in asked if name.startswith("metadata.")]
    return [repository.carries_label(session, name, value) for name, value in labels]


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


def _order_answer(headers: Mapping[str, str], patience: int, snapshot: TaskSnapshot) -> Response:
    hint = {} if snapshot.is_final else {"Retry-After": str(patience)}
    return Response(snapshot.body, 200 if snapshot.is_final else 202, {**headers, **hint}, "application/json")


def _read_answer(if_none_match: str | None, snapshot: TaskSnapshot) -> Response:
    headers = {"ETag": _etag(snapshot), "Cache-Control": "private, no-cache", "Vary": "Prefer"}
    if if_none_match is not None and not _is_other(if_none_match, snapshot):
        return Response(None, 304, headers)
    return Response(snapshot.body, 200, headers, "application/json")


def _etag(snapshot: TaskSnapshot) -> str:
    return f'W/"{snapshot.version}"'


def _is_other(if_none_match: str, snapshot: TaskSnapshot) -> bool:
    """RFC 9110, 13.1.2: not among a list of tags or `*`, compared weakly."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" not in tags and _etag(snapshot).removeprefix("W/") not in tags


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
