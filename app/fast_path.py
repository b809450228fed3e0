"""
The fast path: the plain form of a hot request is answered here, by one statement and without the framework.

Whatever is not plain, or no success, goes on to the documented route. This module
answers exactly as that route would, or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import structlog
from sqlalchemy import bindparam, inspect, or_, select
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.api_keys import find_caller, hash_key
from app.callbacks.service import CallbackService
from app.config import CALLBACKS_PATH
from app.database.base import Base
from app.database.engine import TRANSIENT, Database
from app.database.fetching import FixedQuery
from app.enums import TaskStatus
from app.models import ApiKey, Clip, Task
from app.signed_urls import SignedUrls
from app.tasks.repository import queue_positions
from app.tasks.schemas import CLIP_COLUMNS, TASK_COLUMNS, TaskCreate, read_task
from app.tasks.service import TaskService
from app.tasks.waiting import TaskSnapshot, Waiters, read_wait, snapshot_of
from app.web import read_body, replayed, retried

_TASKS_PATH = "/v1/tasks"
_TASK_PATH = re.compile(f"{_TASKS_PATH}/([0-9a-f]{{32}})")
_CALLBACK_PATH = re.compile(CALLBACKS_PATH + "([^/]+)/([^/]+)")
_RECEIVED = JSONResponse({"status": "received"})
_BEARER = re.compile(rb"[Bb]earer ([!-~]+)")
_ACCEPTED = frozenset({None, b"*/*", b"application/json"})
# The headers that change the answer of an order, but for those of a read; and those that change any answer.
_OF_ORDERS = frozenset({b"prefer", b"idempotency-key"})
_HEADERS = _OF_ORDERS | {b"authorization", b"accept", b"if-none-match", b"content-type"}


def _columns(table: type[Base], names: Sequence[str]) -> list[Any]:
    return [inspect(table).columns[name] for name in names]


# The caller, if its key works and may read the task, with the task and its clips: one row for each clip, or one row.
_FIND_TASK = FixedQuery(
    select(
        *_columns(ApiKey, ["name"]),
        *_columns(Task, TASK_COLUMNS),
        *_columns(Clip, CLIP_COLUMNS),
    )
    .select_from(ApiKey.__table__.join(Task.__table__, inspect(Task).columns["id"] == bindparam("task_id")))
    .outerjoin(Clip.__table__, Clip.task_id == Task.id)
    .where(ApiKey.key_hash == bindparam("key_hash"), ApiKey.revoked_at.is_(None))
    .where(or_(ApiKey.is_admin, Task.api_key_id == ApiKey.id))
    .order_by(Clip.index)
)


class FastPath:
    """
    Pure ASGI middleware, the innermost one.

    It answers `GET /v1/tasks/{id}` where nothing but a wait is negotiated, `POST /v1/tasks` where
    nothing is, and all callbacks, of which errors, too, are answered the same within and
    without the framework.
    """

    def __init__(
        self,
        app: ASGIApp,
        database: Database,
        signed_urls: SignedUrls,
        callbacks: CallbackService,
        tasks: TaskService,
        waiters: Waiters,
    ) -> None:
        self._app, self._database, self._signed_urls = app, database, signed_urls
        self._callbacks, self._tasks, self._waiters = callbacks, tasks, waiters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a plain request; pass any other one on."""
        if scope["type"] == "http" and not scope["query_string"]:
            if scope["method"] == "GET" and (task := _TASK_PATH.fullmatch(scope["path"])) is not None:
                if await self._read_task(task[1], scope, receive, send):
                    return
            elif scope["method"] == "POST" and scope["path"] == _TASKS_PATH:
                body = await self._create_task(scope, receive, send)
                if body is None:
                    return
                receive = replayed(body, receive)
            elif scope["method"] == "POST" and (callback := _CALLBACK_PATH.fullmatch(scope["path"])) is not None:
                await self._receive_callback(callback[1], callback[2], scope, receive)
                await _RECEIVED(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _create_task(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """Answer an order of a known caller that can be read; otherwise return its body, for the route."""
        body, headers = await read_body(receive), _plain_headers(scope, _OF_ORDERS)
        order = _read_order(body) if headers and headers.get(b"content-type") == b"application/json" else None
        key_hash = _key_hash(headers) if headers and order else None
        caller = await find_caller(self._database, key_hash) if key_hash else None
        if order is None or caller is None:
            return body
        placed = await retried(partial(self._tasks.place, caller, order))
        await placed.respond_with(snapshot_of(placed.task))(scope, receive, send)
        return None

    async def _receive_callback(self, task_id: str, token: str, scope: Scope, receive: Receive) -> None:
        self._callbacks.check_token(task_id, token)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        body = await read_body(receive)
        await retried(partial(self._callbacks.receive, task_id, token, headers, body))

    async def _read_task(self, task_id: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with a task; return whether it was found."""
        headers = _plain_headers(scope)
        wait = await read_wait([headers.get(b"prefer", b"").decode("latin-1")]) if headers else None
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
            task = _to_task(rows)
            positions: Mapping[str, int] = {}
            if task.status is TaskStatus.queued:
                async with self._database.reads() as session:
                    positions = await queue_positions(session, [task])
        except TRANSIENT:
            return None
        structlog.contextvars.bind_contextvars(caller=rows[0][0])
        return snapshot_of(read_task(task, positions, self._signed_urls))


def _plain_headers(scope: Scope, negotiated: Collection[bytes] = ()) -> Mapping[bytes, bytes] | None:
    """
    The headers that an answer depends on.

    None where one comes twice, another form of the answer is asked for, or one that is `negotiated` is there.
    """
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


def _to_task(rows: Sequence[Sequence[Any]]) -> SimpleNamespace:
    """A task with its clips from the rows of `_FIND_TASK`."""
    until = 1 + len(TASK_COLUMNS)
    clips = [SimpleNamespace(**dict(zip(CLIP_COLUMNS, row[until:], strict=True))) for row in rows]
    task = dict(zip(TASK_COLUMNS, rows[0][1:until], strict=True))
    return SimpleNamespace(**task, clips=[clip for clip in clips if clip.task_id is not None])
