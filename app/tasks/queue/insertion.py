"""Inserting orders as queued tasks: a few statements for any number of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import insert, inspect

from app.database.base import Base, new_id
from app.database.engine import Session
from app.enums import Charge, EventType, TaskStatus
from app.models import Event, Task, TaskLabel
from app.observability.tracing import TraceContext
from app.tasks.order_schemas import NOT_STORED, TaskCreate

_UNKNOWN = {name: None for name, column in inspect(Task).columns.items() if column.nullable}
# All rows of one statement have the same columns.
_NOT_RESERVED = {"booked": None, "reserved_at": None}


class Order(NamedTuple):
    """
    Who orders, what, where a client of the vendor's API wants its callbacks, and the trace that it is a part of.

    `task_id` is the id that the caller has chosen, and `digest` what tells the order from others with it.
    """

    api_key_id: str
    body: TaskCreate
    callback_url: str | None = None
    trace_context: TraceContext | None = None
    task_id: str | None = None
    digest: str | None = None


async def insert_tasks(
    session: Session, orders: Sequence[tuple[Order, Mapping[str, Any]]], default_model: str, now: datetime
) -> Sequence[SimpleNamespace]:
    """
    Insert queued tasks, with their labels and first events, by one statement for each table.

    Each order comes with what else its task has: its price, and when it is reserved and due.
    Returns the tasks' columns and `clips`, of which there are none yet.
    """
    tasks = [{**_NOT_RESERVED, **_new_task(order, default_model, now), **beside} for order, beside in orders]
    owned = ({"task_id": task["id"], "api_key_id": task["api_key_id"], "created_at": now} for task in tasks)
    labelled = zip(owned, tasks, strict=True)
    labels = [{**ids, "name": n, "value": v} for ids, task in labelled for n, v in task["metadata"].items()]
    first = {"version": 1, "type": EventType.task_created, "created_at": now, "data": {"status": TaskStatus.queued}}
    events = [{"id": new_id(), "task_id": task["id"], **first} for task in tasks]
    for table, rows in ((Task, tasks), (TaskLabel, labels), (Event, events)):
        if rows:
            await session.execute(insert(Base.metadata.tables[table.__tablename__]), rows)
    return [SimpleNamespace(**{**_UNKNOWN, **task}, labels=task["metadata"], clips=[]) for task in tasks]


def _new_task(order: Order, default_model: str, now: datetime) -> dict[str, Any]:
    body = order.body
    model = body.model or default_model
    return {
        **{name: value for name, value in body if name not in NOT_STORED},
        "id": order.task_id or new_id(),
        "api_key_id": order.api_key_id,
        "order_digest": order.task_id and order.digest,
        "status": TaskStatus.queued,
        "version": 1,
        "model": model,
        "sound_digest": sound_digest(body, model),
        "callback_url": order.callback_url,
        "trace_context": order.trace_context,
        "charge": Charge.none,
        "posts": 0,
        "audio_checks": 0,
        "attempts": 0,
        "was_unconfirmed": False,
        "created_at": now,
        "updated_at": now,
    }


def sound_digest(body: TaskCreate, model: str) -> str:
    """The SHA-256, in hex, of all that the sound of an order depends on: equal orders have one digest."""
    sound = [body.prompt, model, body.sound_loop, body.sound_tempo, body.sound_key, body.grab_lyrics]
    return sha256(json.dumps(sound).encode()).hexdigest()
