"""Reading kept callbacks again, after what could not read them was mended or a task was given up."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from app.callbacks.service import is_about_another
from app.database.engine import Database, Session
from app.enums import CallbackOutcome, ResolvedBy
from app.models import Callback
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.repository import lock_task
from app.upstream.suno.reports import read_callback


async def find_callbacks(database: Database, task_id: str | None, since: datetime | None) -> list[str]:
    """The ids of the kept callbacks of one task, or since a time, in the order of their arrival."""
    wanted = select(Callback.id).order_by(Callback.received_at, Callback.id)
    if task_id is not None:
        wanted = wanted.where(Callback.task_id == task_id)
    if since is not None:
        wanted = wanted.where(Callback.received_at >= since)
    async with database.reads() as session:
        return list(await session.scalars(wanted))


async def replay(database: Database, lifecycle: TaskLifecycle, callback_id: str, *, keeps: bool) -> bool:
    """Read one callback again; return whether it was news. Its effect is kept only if `keeps`."""
    async with database.writes() as session, session.begin() as transaction:
        is_news = await _replay(session, database, lifecycle, callback_id)
        if not keeps:
            await transaction.rollback()
    return is_news


async def _replay(session: Session, database: Database, lifecycle: TaskLifecycle, callback_id: str) -> bool:
    callback = await session.get(Callback, callback_id)
    task = await lock_task(session, callback.task_id) if callback else None
    report = read_callback(callback.body) if callback else None
    if callback is None or task is None or report is None or is_about_another(task, report):
        return False
    if not await lifecycle.apply_report(session, task, report, await database.now(session), ResolvedBy.replay):
        return False
    callback.outcome = CallbackOutcome.applied
    return True
