"""The page of a task: what it is, why it waits, what happened to it, its sounds, and what can be done about it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import ValidationError

from app.auth.api_keys import refusal_of
from app.callbacks.service import CallbackService
from app.clips import subtitles
from app.clips.responses import CACHE_CONTROL, serve_file
from app.clips.service import ClipService
from app.clips.waveform import Waveforms
from app.config import Settings
from app.console.live import LiveDep
from app.console.mount import PATH
from app.console.rendering import PagesDep
from app.console.session import AdminVisitor, FormDep, ReadVisitor, Refused, SubmitVisitor, Visitor, WebhooksVisitor
from app.console.task_repository import read_task_rows
from app.console.task_view import CHARGES, curl_of, parameters_of, view_callback, why_it_waits
from app.console.timeline import timeline_of
from app.database.engine import Database
from app.enums import TaskStatus
from app.errors import TaskAlreadyFinal, TaskNotFinal
from app.models import ApiKey, Task
from app.storage.store import Storage
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.service import OrderService
from app.tasks.schemas import TaskId
from app.tasks.service import TaskService
from app.tasks.transitions import FINAL, CannotResolve, check_resolution
from app.web.middleware import PAGE_POLICY
from app.web.negotiation import matches
from app.web.provided import provided
from app.web.routing import Router
from app.webhooks.service import WebhookService

router = Router(prefix=PATH)
OrdersDep = Annotated[OrderService, provided(OrderService)]
TasksDep = Annotated[TaskService, provided(TaskService)]
ClipsDep = Annotated[ClipService, provided(ClipService)]
StorageDep = Annotated[Storage, provided(Storage)]
WaveformsDep = Annotated[Waveforms, provided(Waveforms)]
WebhooksDep = Annotated[WebhookService, provided(WebhookService)]
# As long as a key of an order may be.
MAX_KEY = 255
# What an operator can set a task to; `check_resolution` knows from which states.
RESOLUTIONS = (TaskStatus.generating, TaskStatus.succeeded, TaskStatus.failed, TaskStatus.canceled)


@dataclass(frozen=True, slots=True)
class TaskPages:
    """Reads what the page of a task shows."""

    database: Database
    settings: Settings
    callbacks: CallbackService

    async def read(self, visitor: Visitor, task_id: str, base_url: str) -> dict[str, Any]:
        """The values of the page's template. Raises NotFound."""
        settings = self.settings
        rows = await read_task_rows(self.database, visitor.caller, task_id, settings)
        reasons = why_it_waits(rows, settings)
        read = self.callbacks.read
        return {
            "rows": rows,
            "task": rows.task,
            "now": rows.now,
            "reasons": reasons,
            "timeline": timeline_of(rows),
            "callbacks": [view_callback(each, read(each.body) if each.body else None) for each in rows.callbacks],
            "charge": CHARGES[rows.task.charge],
            "curl": curl_of(rows.task, settings.link_base or base_url),
            "resolutions": _resolutions(rows.task),
            "is_final": rows.task.status in FINAL,
            "is_live": bool(reasons),
            "order_key": f"console-{secrets.token_urlsafe(16)}",
        }

    async def require_working_key(self, task: Task) -> None:
        """Raises Refused where the key of this task does not work any more: nobody may order in its name."""
        async with self.database.reads() as session:
            owner = await session.get_one(ApiKey, task.api_key_id)
            refusal = refusal_of(owner, await self.database.now(session))
        if refusal is not None:
            raise Refused(409, "Nothing was ordered", refusal)


TaskPagesDep = Annotated[TaskPages, provided(TaskPages)]


@router.get("/tasks/{task_id}")
async def show_task(
    request: Request, pages: PagesDep, visitor: ReadVisitor, task_pages: TaskPagesDep, task_id: TaskId
) -> Response:
    """One task, live until it has ended and all of it is stored and delivered."""
    # The player writes its styles into the page: only those with this nonce are taken.
    nonce = secrets.token_urlsafe(16)
    values = await task_pages.read(visitor, task_id, _base(request))
    response = pages.render(request, "task.html", nonce=nonce, **values)
    response.headers["Content-Security-Policy"] = PAGE_POLICY.replace(
        "style-src 'self'", f"style-src 'self' 'nonce-{nonce}'"
    )
    return response


@router.get("/live/tasks/{task_id}")
async def stream_task(
    request: Request,
    pages: PagesDep,
    visitor: ReadVisitor,
    task_pages: TaskPagesDep,
    tasks: TasksDep,
    live: LiveDep,
    task_id: TaskId,
) -> Response:
    """The same again and again, as it changes."""
    await tasks.get_row(visitor.caller, task_id)

    async def render() -> str:
        return pages.text(request, "_task_live.html", **await task_pages.read(visitor, task_id, _base(request)))

    return live.respond(visitor, task_id, render)


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _resolutions(task: Task) -> list[TaskStatus]:
    """What an operator may find out about this task, whose id at the upstream can be found out too."""
    return [status for status in RESOLUTIONS if _can_be(task, status)]


def _can_be(task: Task, status: TaskStatus) -> bool:
    try:
        check_resolution(task, status, "any")
    except CannotResolve:
        return False
    return True


@router.get("/tasks/{task_id}/clips/{index}/audio")
async def get_audio(
    request: Request, visitor: ReadVisitor, clips: ClipsDep, storage: StorageDep, task_id: TaskId, index: str
) -> Response:
    """The stored audio of a clip, with ranges, for the player."""
    return await serve_file(request, storage, await clips.audio(visitor.caller, task_id, index, request.receive))


@router.get("/tasks/{task_id}/clips/{index}/peaks")
async def get_peaks(
    request: Request,
    visitor: ReadVisitor,
    clips: ClipsDep,
    waveforms: WaveformsDep,
    task_id: TaskId,
    index: str,
) -> Response:
    """The waveform of a clip as JSON: the loudest sample of each part, and the duration in seconds."""
    audio = await clips.audio(visitor.caller, task_id, index, request.receive)
    headers = {"ETag": f'"peaks-{audio.sha256}"', "Cache-Control": CACHE_CONTROL}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await waveforms.read(audio.key, audio.size), 200, headers, "application/json")


@router.get("/tasks/{task_id}/clips/{index}/image")
async def get_image(
    request: Request, visitor: ReadVisitor, clips: ClipsDep, storage: StorageDep, task_id: TaskId, index: str
) -> Response:
    """The stored cover of a clip."""
    return await serve_file(request, storage, await clips.cover(visitor.caller, task_id, index))


@router.get("/tasks/{task_id}/clips/{index}/lyrics.srt")
async def get_lyrics(visitor: ReadVisitor, clips: ClipsDep, task_id: TaskId, index: str) -> Response:
    """The sung words of a clip as SubRip subtitles."""
    words = await clips.lyrics(visitor.caller, task_id, index)
    return Response(subtitles.srt(words), media_type="application/x-subrip; charset=utf-8")


@router.post("/tasks/{task_id}/cancel")
async def cancel_task(
    pages: PagesDep, visitor: SubmitVisitor, _form: FormDep, tasks: TasksDep, task_id: TaskId
) -> Response:
    """Cancel a task."""
    caller = visitor.acting_for(await tasks.get_row(visitor.caller, task_id))
    try:
        await tasks.cancel(caller, task_id)
    except TaskAlreadyFinal:
        return pages.redirect(_page(task_id), "The task had ended before it could be canceled.")
    return pages.redirect(_page(task_id), "The task is canceled.")


@router.post("/tasks/{task_id}/delete")
async def delete_task(
    pages: PagesDep, visitor: SubmitVisitor, _form: FormDep, tasks: TasksDep, task_id: TaskId
) -> Response:
    """Delete a task that has ended."""
    caller = visitor.acting_for(await tasks.get_row(visitor.caller, task_id))
    try:
        await tasks.erase(caller, task_id)
    except TaskNotFinal:
        return pages.redirect(_page(task_id), "The task has not ended: cancel it first.")
    return pages.redirect(f"{PATH}/tasks", f"The task {task_id} is deleted.")


@router.post("/tasks/{task_id}/order-again")
async def order_again(
    pages: PagesDep,
    visitor: SubmitVisitor,
    form: FormDep,
    tasks: TasksDep,
    task_pages: TaskPagesDep,
    orders: OrdersDep,
    task_id: TaskId,
) -> Response:
    """Order the same sound as a new task of the same key; a form that is sent twice orders once."""
    row = await tasks.get_row(visitor.caller, task_id)
    await task_pages.require_working_key(row)
    try:
        order = TaskCreate.model_validate(parameters_of(row))
    except ValidationError:
        raise Refused(422, "The order is not valid any more", "This release takes no such order.") from None
    caller, key = visitor.acting_for(row), form.get("order_key", "")[:MAX_KEY] or None
    placed = await orders.place(caller, order, idempotency_key=key, callback_url=row.callback_url, instead_of=row.id)
    return pages.redirect(_page(placed.task.id), "This is the new task.")


@router.post("/tasks/{task_id}/resolve")
async def resolve_task(
    pages: PagesDep, visitor: AdminVisitor, form: FormDep, tasks: TasksDep, task_id: TaskId
) -> Response:
    """Set a task to what an operator has found out elsewhere."""
    await tasks.get_row(visitor.caller, task_id)
    status, upstream_task_id = form.get("status", ""), form.get("upstream_task_id", "").strip() or None
    if status not in RESOLUTIONS:
        raise Refused(422, "There is no such resolution", f"Choose one of {', '.join(RESOLUTIONS)}.")
    if status == TaskStatus.generating and upstream_task_id is None:
        return pages.redirect(_page(task_id), "To be generating, the task needs the upstream's id.")
    try:
        await tasks.resolve(visitor.caller.api_key_id, task_id, TaskStatus(status), upstream_task_id)
    except CannotResolve as error:
        return pages.redirect(_page(task_id), str(error))
    return pages.redirect(_page(task_id), f"The task is resolved as {status}.")


@router.post("/tasks/{task_id}/deliveries/{delivery_id}/resend")
async def resend(
    pages: PagesDep,
    visitor: WebhooksVisitor,
    _form: FormDep,
    tasks: TasksDep,
    webhooks: WebhooksDep,
    task_id: TaskId,
    delivery_id: str,
) -> Response:
    """Make a delivery due now."""
    caller = visitor.acting_for(await tasks.get_row(visitor.caller, task_id))
    await webhooks.resend(caller, delivery_id)
    return pages.redirect(f"{_page(task_id)}#deliveries", "The webhook is sent again now.")


def _page(task_id: str) -> str:
    return f"{PATH}/tasks/{task_id}"
