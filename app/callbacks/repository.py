"""Queries on stored callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from app.database.base import id_floor
from app.database.engine import Session
from app.models import Callback, Task

# Ids are made by the clock of a replica, `received_at` is by that of the database.
CLOCK_SKEW = timedelta(hours=1)
# How many of a task are stored: a column of a query on tasks.
STORED_CALLBACKS = select(func.count()).where(Callback.task_id == Task.id).scalar_subquery().label("stored_callbacks")


async def first_callbacks(
    session: Session, since: datetime | None, after: str, limit: int
) -> Sequence[tuple[str, str]]:
    """
    The first callback since a time of each task: its id and the task's, for up to `limit` tasks, behind the id `after`.

    They are found along the primary key, since ids begin with their time.
    """
    others = aliased(Callback)
    first = select(others.id).where(others.task_id == Callback.task_id)
    if since is not None:
        first = first.where(others.received_at >= since)
        after = max(after, id_floor(since, CLOCK_SKEW))
    first = first.order_by(others.received_at, others.id).limit(1)
    wanted = select(Callback.id, Callback.task_id).where(Callback.id > after, Callback.id == first.scalar_subquery())
    rows = await session.execute(wanted.order_by(Callback.id).limit(limit))
    return [(callback_id, task_id) for callback_id, task_id in rows]


async def callbacks_of(session: Session, task_id: str, since: datetime | None) -> Sequence[str]:
    """The ids of a task's callbacks since a time, in the order of arrival."""
    wanted = select(Callback.id).where(Callback.task_id == task_id)
    if since is not None:
        wanted = wanted.where(Callback.received_at >= since)
    return (await session.scalars(wanted.order_by(Callback.received_at, Callback.id))).all()
