"""Queries on stored callbacks."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from app.database.engine import Session
from app.models import Callback, Task

# How many of a task are stored: a column of a query on tasks.
STORED_CALLBACKS = select(func.count()).where(Callback.task_id == Task.id).scalar_subquery().label("stored_callbacks")


async def find_callbacks(session: Session, task_id: str | None, since: datetime | None) -> list[str]:
    """The ids of the stored callbacks, in the order of arrival; None leaves a condition out."""
    wanted = select(Callback.id).order_by(Callback.received_at, Callback.id)
    if task_id is not None:
        wanted = wanted.where(Callback.task_id == task_id)
    if since is not None:
        wanted = wanted.where(Callback.received_at >= since)
    return list(await session.scalars(wanted))
