"""The routes of tasks: create, list, read, cancel and delete them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from app.auth.callers import Caller, ReadCaller, SubmitCaller
from app.enums import Charge, Scope
from app.errors import (
    BudgetExceeded,
    IdempotencyKeyReused,
    IdTaken,
    InvalidRequest,
    TaskAlreadyFinal,
    TaskDeleted,
    TaskNotFinal,
    TooManyRequests,
)
from app.models import Callback
from app.observability.tracing import trace_context_of
from app.signed_urls import SignedUrls
from app.tasks.event_schemas import CallbackPage, CallbackRead
from app.tasks.events import FINAL_SUMMARIES, receive_task_webhook
from app.tasks.links.reading import ReaderDep
from app.tasks.links.schemas import LinkedTask, OrderedTask
from app.tasks.links.views import LinkedView, with_links
from app.tasks.order_schemas import MAX_LABELS, TaskCreate
from app.tasks.orders.idempotency import KeyDep, NewTaskId, refuse_key
from app.tasks.orders.reuse import PreferencesDep
from app.tasks.orders.service import OrderService
from app.tasks.schemas import CanceledTask, TaskFilters, TaskId, TaskPage, TaskRead
from app.tasks.service import TaskService
from app.tasks.waiting import TaskSnapshot, WaitDep, WaitersDep, snapshot_of
from app.web.openapi import response_headers
from app.web.pagination import PAGE, Cursor, Limit, decode_time_cursor, link_to_next
from app.web.problems import pointer_to, problem_responses
from app.web.provided import provided
from app.web.routing import Router
from app.webhooks.openapi import documented_routes

router = Router(prefix="/v1/tasks", tags=["tasks"])
# Each operation in the document needs a name of its own.
final_webhooks, final_webhooks_of_put = (
    documented_routes(receive_task_webhook, FINAL_SUMMARIES, path="{{$request.body#/webhook_url}}", verb=verb)
    for verb in ("callBack", "callBackPut")
)
PLACED_HEADERS = response_headers(
    "Location", "Cache-Control", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy", "Preference-Applied"
)
CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": OrderedTask, "description": "The task, which has already ended.", "headers": PLACED_HEADERS},
    202: {"description": "The stored task.", "headers": {**PLACED_HEADERS, **response_headers("Retry-After")}},
    **problem_responses(BudgetExceeded, IdempotencyKeyReused, TaskDeleted, TooManyRequests),
}
READ_HEADERS = response_headers("ETag", "Cache-Control", "Preference-Applied")
READ: dict[int | str, dict[str, Any]] = {
    200: {"description": "The task; by a signed link, what that shows of it.", "headers": READ_HEADERS},
    304: {"description": "The task still has the version named in `If-None-Match`.", "headers": READ_HEADERS},
}
IfNoneMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(
        alias="If-None-Match",
        description="The `ETag` of the version that you have, or several separated by commas: if the task still has"
        " that version, the response is 304 without a body.",
        examples=['W/"5"'],
    ),
]
# What the names of query parameters that filter by metadata begin with.
LABEL = "metadata."
SignedUrlsDep = Annotated[SignedUrls, provided(SignedUrls)]
OrdersDep = Annotated[OrderService, provided(OrderService)]
TasksDep = Annotated[TaskService, provided(TaskService)]


@router.post(
    "",
    status_code=202,
    operation_id="createTask",
    summary="Create a task",
    response_model=OrderedTask,
    responses=CREATED,
    callbacks=final_webhooks.routes,
)
async def create_task(
    request: Request,
    orders: OrdersDep,
    waiters: WaitersDep,
    signed_urls: SignedUrlsDep,
    caller: SubmitCaller,
    body: TaskCreate,
    preferences: PreferencesDep,
    key: KeyDep,
) -> Response:
    """
    Request a sound.

    The task is stored before the response, and then sent to the upstream once. Send an
    `Idempotency-Key` to be able to repeat the request safely.
    """
    _check_links(caller, body)
    trace_context, reuse = trace_context_of(request.scope), preferences.reuse
    placed = await orders.place(caller, body, idempotency_key=key, reuse=reuse, trace_context=trace_context)

    def respond(snapshot: TaskSnapshot) -> Response:
        return placed.respond_with(with_links(signed_urls, body.links, snapshot))

    return waiters.respond(snapshot_of(placed.task), preferences.wait, attrgetter("is_final"), respond)


@router.get("", operation_id="listTasks", summary="List tasks", responses=PAGE)
async def list_tasks(
    request: Request, response: Response, tasks: TasksDep, caller: ReadCaller, filters: Annotated[TaskFilters, Query()]
) -> TaskPage:
    """
    List your tasks, newest first.

    Query parameters of the form `metadata.<key>=<value>` select the tasks with these
    labels, at most 16 as a task has; several of them must all match. A page ends early where
    its lyrics would exceed 5,000 words.
    """
    after = decode_time_cursor(request, filters.cursor)
    page, is_more = await tasks.list(caller, filters, _labels(request), after, filters.limit)
    last = (page[-1].created_at.isoformat(), page[-1].id) if is_more else None
    return TaskPage(items=page, next_cursor=last and link_to_next(request, response, last))


@router.get(
    "/{task_id}", operation_id="getTask", summary="Get a task", response_model=TaskRead | LinkedTask, responses=READ
)
async def get_task(
    tasks: TasksDep,
    waiters: WaitersDep,
    reader: ReaderDep,
    signed_urls: SignedUrlsDep,
    task_id: TaskId,
    wait: WaitDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """
    Get one task in its current state.

    With `Prefer: wait=n` the response waits up to n seconds for the task to have another
    version than the one in `If-None-Match`, or, without that header, for it to end. A signed
    link shows the task without `metadata`, `webhook_url` and the upstream's words.
    """
    task = await tasks.get(reader.caller, task_id)
    if reader.link is None:
        return waiters.respond_to_read(snapshot_of(task), wait, if_none_match)
    view = LinkedView(signed_urls, reader.link)
    return waiters.respond_to_read(view(task), wait and view.ending(wait), if_none_match, view)


@router.put(
    "/{task_id}",
    status_code=202,
    operation_id="putTask",
    summary="Create a task with an id of your own",
    response_model=OrderedTask,
    responses={**CREATED, **problem_responses(IdTaken)},
    callbacks=final_webhooks_of_put.routes,
    dependencies=[Depends(refuse_key)],
)
async def put_task(
    request: Request,
    orders: OrdersDep,
    waiters: WaitersDep,
    signed_urls: SignedUrlsDep,
    caller: SubmitCaller,
    task_id: NewTaskId,
    body: TaskCreate,
    wait: WaitDep,
) -> Response:
    """
    Request a sound as the task with this id, once, however often and however late this is repeated.

    The same body again is answered with the task as it is then; another body is refused, and so is an
    `Idempotency-Key`, since the id is one. The id of a deleted task stays used as long as tasks are kept.
    """
    _check_links(caller, body)
    placed = await orders.place(caller, body, task_id=task_id, trace_context=trace_context_of(request.scope))

    def respond(snapshot: TaskSnapshot) -> Response:
        return placed.respond_with(with_links(signed_urls, body.links, snapshot))

    return waiters.respond(snapshot_of(placed.task), wait, attrgetter("is_final"), respond)


@router.post(
    "/{task_id}/cancel",
    operation_id="cancelTask",
    summary="Cancel a task",
    responses=problem_responses(TaskAlreadyFinal),
)
async def cancel_task(tasks: TasksDep, caller: SubmitCaller, task_id: TaskId) -> CanceledTask:
    """Cancel a task. Nothing is charged if it was not sent yet; otherwise the upstream may still charge for it."""
    task = await tasks.cancel(caller, task_id)
    return CanceledTask(**task.model_dump(), charge_may_apply=task.charge is not Charge.none)


@router.delete(
    "/{task_id}",
    operation_id="deleteTask",
    summary="Delete a task",
    status_code=204,
    response_description="The task is deleted.",
    responses=problem_responses(TaskNotFinal),
)
async def delete_task(tasks: TasksDep, caller: SubmitCaller, task_id: TaskId) -> None:
    """
    Delete a task that has ended, with its prompt, clips, audio, events, callbacks and deliveries.

    Its `Idempotency-Key` stays used until 24 hours after the order: a retry creates no second task.
    """
    await tasks.erase(caller, task_id)


@router.get(
    "/{task_id}/callbacks",
    operation_id="listTaskCallbacks",
    summary="List a task's callbacks",
    responses=PAGE,
)
async def list_callbacks(
    request: Request,
    response: Response,
    tasks: TasksDep,
    caller: ReadCaller,
    task_id: TaskId,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> CallbackPage:
    """
    List the callbacks that the upstream sent for a task, as received but for secrets, oldest first.

    The first 100 of a task are kept. A page ends early where its bodies would exceed 1 MiB.
    """
    callbacks, is_more = await tasks.list_callbacks(caller, task_id, decode_time_cursor(request, cursor), limit)
    following = link_to_next(request, response, _place(callbacks[-1])) if is_more else None
    return CallbackPage(items=[_read_callback(callback) for callback in callbacks], next_cursor=following)


def _check_links(caller: Caller, body: TaskCreate) -> None:
    """Raises NotPermitted for links to read a task by, where the key may not read it."""
    if body.links is not None:
        caller.require(Scope.read)


def _labels(request: Request) -> Mapping[str, str]:
    """The labels that a list is filtered by. Raises InvalidRequest."""
    named = [(name, value) for name, value in request.query_params.multi_items() if name.startswith(LABEL)]
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        detail = "is given more than once"
        raise InvalidRequest(errors=[{"pointer": pointer_to(["query", name]), "detail": detail} for name in twice[:20]])
    if len(named) > MAX_LABELS:
        detail = f"at most {MAX_LABELS} labels can be asked for, as a task has no more"
        raise InvalidRequest(errors=[{"pointer": "#/query/metadata", "detail": detail}])
    return {name.removeprefix(LABEL): value for name, value in named}


def _place(callback: Callback) -> tuple[str, str]:
    return callback.received_at.isoformat(), callback.id


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
