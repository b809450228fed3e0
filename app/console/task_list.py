"""The list of tasks: how the queue stands, the last hour, and the tasks that the URL asks for, kept up to date."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import ValidationError

from app.config import Settings
from app.console.live import LiveDep
from app.console.mount import PATH
from app.console.rendering import Pages, PagesDep, link_with, with_zone
from app.console.repository import LastHour, names_of_owners, read_last_hour, read_overview
from app.console.session import FormDep, ReadVisitor, Visitor
from app.database.engine import Database
from app.database.wakeups import EVERY_TASK
from app.errors import AppError, InvalidRequest
from app.tasks.schemas import TaskFilters
from app.tasks.service import TaskService
from app.upstream.credits import CreditsCache
from app.web.pagination import decode_time_cursor, encode_cursor
from app.web.provided import provided
from app.web.routing import Router

router = Router(prefix=PATH)
LIST = f"{PATH}/tasks"
PAGE_SIZE = 50
# The picture of the last hour is no younger, however many look at it.
HOUR_FRESH_FOR = timedelta(seconds=5)
MAX_KEPT_HOURS = 100
_ID = re.compile("[0-9a-f]{32}")
_MOMENTS = "created_after", "created_before"
_FILTERS = "status", "model", *_MOMENTS
_LABEL = "metadata."


@dataclass(frozen=True, slots=True)
class Query:
    """What the URL of a list asks for, in the words of `GET /v1/tasks`."""

    filters: TaskFilters
    labels: Mapping[str, str]
    after: tuple[datetime, str] | None
    # As it was given, to fill the form; without what is empty.
    given: Mapping[str, str]

    def link(self, **changes: str) -> str:
        """The query of a URL that asks for the same, but for these changes; an empty value takes one out."""
        return link_with(self.given, **changes)


class TaskLists:
    """Reads what the list shows."""

    def __init__(self, database: Database, tasks: TaskService, settings: Settings) -> None:
        self._database, self._tasks, self._settings = database, tasks, settings
        self._hours: dict[str | None, tuple[float, LastHour]] = {}

    async def read(self, visitor: Visitor, query: Query) -> dict[str, Any]:
        """The values of the template. Raises InvalidRequest."""
        found, has_more = await self._tasks.list(visitor.caller, query.filters, query.labels, query.after, PAGE_SIZE)
        async with self._database.reads() as session:
            now = await self._database.now(session)
            overview = await read_overview(session, self._settings, now)
            owners = await names_of_owners(session, [task.id for task in found]) if visitor.is_admin else {}
            hour = await self._last_hour(session, None if visitor.is_admin else visitor.caller.api_key_id, now)
        cursor = encode_cursor(LIST, found[-1].created_at.isoformat(), found[-1].id) if has_more else ""
        shown = {
            "tasks": found,
            "owners": owners,
            "next_cursor": cursor,
            "query": query,
            "models": list(self._settings.models),
        }
        return {**shown, "overview": overview, "hour": hour, "rate": self._settings.upstream_rate}

    async def _last_hour(self, session: Any, api_key_id: str | None, now: datetime) -> LastHour:
        kept = self._hours.get(api_key_id)
        if kept is None or time.monotonic() - kept[0] > HOUR_FRESH_FOR.total_seconds():
            self._hours.pop(api_key_id, None)
            kept = self._hours[api_key_id] = time.monotonic(), await read_last_hour(session, api_key_id, now)
            while len(self._hours) > MAX_KEPT_HOURS:
                del self._hours[next(iter(self._hours))]
        return kept[1]


ListsDep = Annotated[TaskLists, provided(TaskLists)]
CreditsDep = Annotated[CreditsCache, provided(CreditsCache)]


@router.get("/tasks")
async def show_tasks(request: Request, pages: PagesDep, visitor: ReadVisitor, lists: ListsDep) -> Response:
    """The newest tasks that the visitor may see and that the URL asks for."""
    if elsewhere := _canonical(request):
        return pages.redirect(elsewhere)
    problems: Sequence[str] = ()
    try:
        query = _read_query(request)
    except InvalidRequest as error:
        problems = [f"{each['pointer'].rpartition('/')[2]}: {each['detail']}" for each in error.errors]
        query = Query(TaskFilters(), {}, None, {})
    is_live = query.after is None and not problems and request.query_params.get("live") != "off"
    values = await lists.read(visitor, query)
    status = 422 if problems else 200
    return pages.render(request, "tasks.html", status, problems=problems, is_live=is_live, **values)


@router.get("/live/tasks")
async def stream_tasks(
    request: Request, pages: PagesDep, visitor: ReadVisitor, lists: ListsDep, live: LiveDep
) -> Response:
    """The parts of the list that change, as they change."""
    query = _read_query(request)
    return live.respond(visitor, EVERY_TASK, partial(_render_parts, request, pages, visitor, lists, query))


@router.post("/credits")
async def ask_for_credits(pages: PagesDep, _visitor: ReadVisitor, _form: FormDep, cache: CreditsDep) -> Response:
    """Ask the upstream for the credits that are left, as `GET /v1/credits` does."""
    try:
        answer = await cache.credits()
    except AppError as error:
        return pages.redirect(LIST, error.detail)
    return pages.redirect(LIST, f"{answer.credits:,} credits are left.")


async def _render_parts(request: Request, pages: Pages, visitor: Visitor, lists: TaskLists, query: Query) -> str:
    return pages.text(request, "_tasks_live.html", is_live=True, **await lists.read(visitor, query))


def _canonical(request: Request) -> str:
    """Where a form's query leads: to the task whose id was given, or to the list's URL without what is empty."""
    pairs = request.query_params.multi_items()
    id_ = request.query_params.get("id", "").strip().lower().replace("-", "")
    if _ID.fullmatch(id_):
        return f"{LIST}/{id_}"
    if not any(name in ("metadata", "id") or not value for name, value in pairs):
        return ""
    kept = {name: value.strip() for name, value in pairs if value.strip() and name not in ("metadata", "id")}
    for _, value in (pair for pair in pairs if pair[0] == "metadata" and "=" in pair[1]):
        name, _, text = value.strip().partition("=")
        kept[f"{_LABEL}{name.strip()}"] = text.strip()
    return LIST + link_with(kept)


def _read_query(request: Request) -> Query:
    """What the URL asks for. Raises InvalidRequest."""
    params = request.query_params
    given = {name: value for name, value in params.items() if name in _FILTERS or name.startswith(_LABEL)}
    # A form's moments have no zone: they are in UTC, as all that the pages show.
    values = {name: with_zone(value) if name in _MOMENTS else value for name, value in given.items()}
    try:
        filters = TaskFilters.model_validate({name: values[name] for name in _FILTERS if name in values})
    except ValidationError as error:
        wrong = [{"pointer": f"#/query/{each['loc'][0]}", "detail": each["msg"]} for each in error.errors()]
        raise InvalidRequest(errors=wrong) from None  # type: ignore[arg-type]
    labels = {name.removeprefix(_LABEL): value for name, value in given.items() if name.startswith(_LABEL)}
    after = decode_time_cursor(request, params.get("cursor"))
    return Query(filters, labels, after, given)
