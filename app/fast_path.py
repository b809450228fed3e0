"""
The fast path: the plain form of a hot request is answered here, by few statements and without the framework.

Whatever is not plain, or no success, goes on to the documented route. This module
answers exactly as that route would, or not at all.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import structlog
from sqlalchemy import JSON, bindparam, func, inspect, or_, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import enums
from app.auth.callers import Caller, find_caller, hash_key
from app.auth.last_use import LastUses
from app.callbacks.service import CallbackService
from app.config import CALLBACKS_PATH
from app.config.database_url import is_sqlite
from app.database.engine import Database
from app.database.failures import TRANSIENT
from app.database.fetching import FixedQuery
from app.models import ApiKey, Clip, Task
from app.observability.tracing import name_route, trace_context_of
from app.signed_urls import SignedUrls
from app.tasks.clips import fitting, words_of
from app.tasks.order_schemas import TaskCreate
from app.tasks.orders.service import OrderService
from app.tasks.queue.positions import QueuePositions
from app.tasks.repository import WHOLE_TASK, to_task
from app.tasks.schemas import TaskFilters, read_task
from app.tasks.waiting import TaskSnapshot, Waiters, read_wait, snapshot_of
from app.web import read_body, replayed, retried
from app.web.pagination import link_to_next

_TASKS_PATH = "/v1/tasks"
_TASK_PATH = re.compile(f"{_TASKS_PATH}/([0-9a-f]{{32}})")
_CALLBACK_PATH = re.compile(CALLBACKS_PATH + "([^/]+)/([^/]+)")
# As the framework's routes are in the scope.
_ROUTES = _TASKS_PATH, f"{_TASKS_PATH}/{{task_id}}", f"{CALLBACKS_PATH}{{task_id}}/{{token}}"
_TASKS_ROUTE, _TASK_ROUTE, _CALLBACK_ROUTE = (SimpleNamespace(path=path) for path in _ROUTES)
PAGE_SIZE: int = TaskFilters.model_fields["limit"].default  # As the route's.
# Renderings of tasks on first pages: for how long, how many, and of which size.
KEPT_FOR, MAX_KEPT, MAX_KEPT_BYTES = timedelta(seconds=10), 500, 16 * 1024
_RECEIVED = JSONResponse({"status": "received"})
_BEARER = re.compile(rb"[Bb]earer ([!-~]+)")
_ACCEPTED = frozenset({None, b"*/*", b"application/json"})
# The headers of an order that only its route heeds; and all that change an answer.
_OF_ORDERS = frozenset({b"prefer", b"idempotency-key"})
_HEADERS = _OF_ORDERS | {b"authorization", b"accept", b"if-none-match", b"content-type"}

# The caller, if its key works and may read the task, with the task and its clips: one row for each clip, or one row.
_FIND_TASK = FixedQuery(
    select(inspect(ApiKey).columns["id"], inspect(ApiKey).columns["name"], *WHOLE_TASK)
    .select_from(ApiKey.__table__.join(Task.__table__, inspect(Task).columns["id"] == bindparam("task_id")))
    .outerjoin(Clip.__table__, Clip.task_id == Task.id)
    .where(ApiKey.key_hash == bindparam("key_hash"), ApiKey.works(), ApiKey.scopes.contains(enums.Scope.read))
    .where(or_(ApiKey.is_admin, Task.api_key_id == ApiKey.id))
    .order_by(Clip.index)
)

_PAGE = select(Task.id, Task.version).order_by(Task.created_at.desc(), Task.id.desc())
_FIRST_PAGE, _FIRST_PAGE_OF_ALL = (
    FixedQuery(page.limit(bindparam("limit")))
    for page in (_PAGE.where(Task.api_key_id == bindparam("api_key_id")), _PAGE)
)


def _find_tasks(each: str) -> FixedQuery:
    """Any number of tasks with their clips; `each` is the database's function that makes rows of a JSON array."""
    ids = getattr(func, each)(bindparam("ids", type_=JSON)).table_valued("value")
    found = select(*WHOLE_TASK).select_from(Task.__table__)
    joined = found.outerjoin(Clip.__table__, Clip.task_id == Task.id).where(Task.id.in_(select(ids.c.value)))
    return FixedQuery(joined.order_by(Task.id, Clip.index))


class _Rendering(NamedTuple):
    """A version of a task as it is shown, but for its place in the queue; `made_at` and `signer` are of its links."""

    version: int
    position: tuple[str, str]
    waiting: SimpleNamespace | None
    words: int
    body: bytes
    made_at: float
    signer: str

    def at(self, places: Mapping[str, int]) -> bytes:
        """Its bytes with its place in the queue. Inside of a text, quotes would be escaped."""
        place = b"null" if self.waiting is None else str(places.get(self.waiting.id, "null")).encode()
        return self.body.replace(b'"queue_position":null', b'"queue_position":' + place)


class FirstPages:
    """
    The newest tasks of a caller, as the first page of its list shows them.

    A task looks the same until its version rises, but for its links: what was rendered is shown
    again for KEPT_FOR, or a hundredth of the time that links work.
    """

    def __init__(self, database: Database, signed_urls: SignedUrls, positions: QueuePositions) -> None:
        self._database, self._signed_urls, self._positions = database, signed_urls, positions
        self._find_tasks = _find_tasks("json_each" if is_sqlite(database.url) else "json_array_elements_text")
        self._kept_for = min(KEPT_FOR, signed_urls.ttl / 100).total_seconds()
        self._kept: dict[str, _Rendering] = {}

    async def read(self, caller: Caller) -> tuple[bytes, tuple[str, str] | None] | None:
        """The items, and the position of the last one if more follow; None where a task was deleted meanwhile."""
        if caller.is_admin:
            rows = await self._database.fetch_shared(_FIRST_PAGE_OF_ALL, limit=PAGE_SIZE + 1)
        else:
            rows = await self._database.fetch_shared(_FIRST_PAGE, limit=PAGE_SIZE + 1, api_key_id=caller.api_key_id)
        now, first = time.time(), rows[:PAGE_SIZE]
        shown = self._find_kept(first, now)
        if len(shown) < len(first):
            shown |= await self._render([id_ for id_, _ in first if id_ not in shown], now)
        if len(shown) < len(first):
            return None
        page = [shown[id_] for id_, _ in first]
        page = page[: fitting(rendering.words for rendering in page)]
        last = page[-1].position if len(rows) > len(page) else None
        places = await self._positions.find(self._database.fetch_shared, [one.waiting for one in page if one.waiting])
        return b",".join([one.at(places) if one.waiting else one.body for one in page]), last

    def _find_kept(self, page: Sequence[Sequence[Any]], now: float) -> dict[str, _Rendering]:
        oldest, signer = now - self._kept_for, self._signed_urls.signer
        return {
            id_: kept
            for id_, version in page
            if (kept := self._kept.get(id_))
            and kept.version == version
            and kept.signer == signer
            and oldest < kept.made_at <= now
        }

    async def _render(self, ids: Sequence[str], now: float) -> Mapping[str, _Rendering]:
        rows = await self._database.fetch(self._find_tasks, ids=ids)
        made, signer = {}, self._signed_urls.signer
        for task in [to_task(list(found)) for _, found in groupby(rows, itemgetter(0))]:
            id_, position = task.id, (task.created_at.isoformat(), task.id)
            waiting = task if task.status is enums.TaskStatus.queued else None
            body = read_task(task, {}, self._signed_urls).model_dump_json().encode()
            made[id_] = _Rendering(task.version, position, waiting, words_of(task.clips), body, now, signer)
            self._kept.pop(id_, None)
            if len(body) <= MAX_KEPT_BYTES:
                self._kept[id_] = made[id_]
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return made


class FastPath:
    """
    Pure ASGI middleware, the innermost one.

    It answers reads of a task where nothing but a wait is negotiated, plain orders, the first page of the list, and all
    callbacks, of which errors, too, are answered the same within and without the framework.
    """

    def __init__(
        self,
        app: ASGIApp,
        database: Database,
        signed_urls: SignedUrls,
        callbacks: CallbackService,
        orders: OrderService,
        waiters: Waiters,
        last_uses: LastUses,
    ) -> None:
        self._app, self._database, self._signed_urls = app, database, signed_urls
        self._callbacks, self._orders, self._waiters, self._last_uses = callbacks, orders, waiters, last_uses
        self._pages = FirstPages(database, signed_urls, waiters.positions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a plain request; pass any other one on."""
        if scope["type"] == "http" and not scope["query_string"]:
            if scope["method"] == "GET" and (task := _TASK_PATH.fullmatch(scope["path"])) is not None:
                name_route(scope, _TASK_ROUTE)
                if await self._read_task(task[1], scope, receive, send):
                    return
            elif scope["method"] == "GET" and scope["path"] == _TASKS_PATH:
                name_route(scope, _TASKS_ROUTE)
                if await self._list_tasks(scope, receive, send):
                    return
            elif scope["method"] == "POST" and scope["path"] == _TASKS_PATH:
                name_route(scope, _TASKS_ROUTE)
                body = await self._create_task(scope, receive, send)
                if body is None:
                    return
                receive = replayed(body, receive)
            elif scope["method"] == "POST" and (callback := _CALLBACK_PATH.fullmatch(scope["path"])) is not None:
                name_route(scope, _CALLBACK_ROUTE)
                await self._receive_callback(callback[1], callback[2], scope, receive)
                await _RECEIVED(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _create_task(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """Answer an order of a known caller that can be read; otherwise return its body, for the route."""
        body, headers = await read_body(receive), _plain_headers(scope, _OF_ORDERS)
        order = _read_order(body) if headers and headers.get(b"content-type") == b"application/json" else None
        caller = await self._find_caller(headers, enums.Scope.submit) if order else None
        if order is None or order.links is not None or caller is None:
            return body
        placed = await retried(partial(self._orders.place, caller, order, trace_context=trace_context_of(scope)))
        await placed.respond_with(snapshot_of(placed.task))(scope, receive, send)
        return None

    async def _receive_callback(self, task_id: str, token: str, scope: Scope, receive: Receive) -> None:
        self._callbacks.check_token(task_id, token)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        body = await read_body(receive)
        await retried(partial(self._callbacks.receive, task_id, token, headers, body))

    async def _list_tasks(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with the first page of tasks; return whether it could be read."""
        try:
            caller = await self._find_caller(_plain_headers(scope), enums.Scope.read)
            page = await self._pages.read(caller) if caller else None
        except TRANSIENT:
            return False
        if page is None:
            return False
        items, last = page
        response = Response(media_type="application/json")
        cursor = link_to_next(Request(scope), response, last) if last else None
        response.body = b'{"items":[%b],"next_cursor":%b}' % (items, json.dumps(cursor).encode())
        response.headers["Content-Length"] = str(len(response.body))
        await response(scope, receive, send)
        return True

    async def _find_caller(self, headers: Mapping[bytes, bytes] | None, needed: enums.Scope) -> Caller | None:
        key_hash = _key_hash(headers) if headers else None
        caller = await find_caller(self._database, self._last_uses, key_hash) if key_hash else None
        return caller if caller and caller.may(needed) else None

    async def _read_task(self, task_id: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with a task; return whether it was found."""
        headers = _plain_headers(scope)
        prefer = [headers.get(b"prefer", b"").decode("latin-1")] if headers else []
        wait = await read_wait(Request(scope), prefer)
        key_hash = _key_hash(headers) if headers else None
        snapshot = await self._find(task_id, key_hash) if key_hash else None
        if headers is None or snapshot is None:
            return False
        known = headers.get(b"if-none-match")
        response = self._waiters.respond_to_read(snapshot, wait, known.decode("latin-1") if known else None)
        await response(scope, receive, send)
        return True

    async def _find(self, task_id: str, key_hash: str) -> TaskSnapshot | None:
        """The task, if this key may read it; None also while the database does not answer."""
        try:
            rows = await self._database.fetch(_FIND_TASK, task_id=task_id, key_hash=key_hash)
            if not rows:
                return None
            task = to_task([row[2:] for row in rows])
            positions = await self._waiters.positions.find(self._database.fetch_shared, [task])
        except TRANSIENT:
            return None
        self._last_uses.note(rows[0][0])
        structlog.contextvars.bind_contextvars(caller=rows[0][1])
        return snapshot_of(read_task(task, positions, self._signed_urls))


def _plain_headers(scope: Scope, negotiated: Collection[bytes] = ()) -> Mapping[bytes, bytes] | None:
    """The headers that an answer depends on. None where one comes twice or is `negotiated`, or JSON is not wanted."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _HEADERS:
            if name in found or name in negotiated:
                return None
            found[name] = value
    return found if found.get(b"accept") in _ACCEPTED else None


def _key_hash(headers: Mapping[bytes, bytes]) -> str | None:
    bearer = _BEARER.fullmatch(headers.get(b"authorization", b""))
    return hash_key(bearer[1].decode()) if bearer else None


def _read_order(body: bytes) -> TaskCreate | None:
    try:
        return TaskCreate.model_validate(json.loads(body))
    except ValueError:
        return None
