"""Held tasks: queued and not due, until the budgets of their keys have room for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from app.budgets.admission import Wanted
from app.budgets.ledger import HAS_HELD, IS_HELD, resets_at, window_start
from app.config import Settings
from app.database.engine import Session
from app.models import Budget, Task
from app.tasks.events import EventRecorder


async def find_admissible(
    session: Session, settings: Settings, recorder: EventRecorder, api_key_id: str, now: datetime, limit: int
) -> Sequence[tuple[Task, datetime]]:
    """
    Those of a key's first `limit` held tasks for which its budget has room, and since when they are reserved.

    The first are those of the highest priority, and of these the oldest. They are locked, and so is the account.
    """
    held = select(Task).where(Task.api_key_id == api_key_id, *IS_HELD).order_by(Task.priority, Task.id).limit(limit)
    # One that somebody else has locked is waited for: if it is skipped, nobody looks at it before the next window.
    tasks = (await session.scalars(held.with_for_update())).all()
    wanted = [Wanted(api_key_id, task.price, True) for task in tasks]
    verdicts = await recorder.admit(session, wanted, now, settings.lowest_price) if wanted else ()
    found = zip(tasks, verdicts, strict=True)
    return [(task, reserved_at) for task, reserved_at in found if isinstance(reserved_at, datetime)]


async def keys_that_hold(session: Session) -> Sequence[str]:
    """The ids of the keys that have held tasks."""
    return (await session.scalars(select(Budget.api_key_id).where(HAS_HELD).order_by(Budget.api_key_id))).all()


async def next_reset(session: Session, now: datetime) -> datetime | None:
    """When the budget of a key that has held tasks begins anew; None where nothing is held."""
    windows = await session.scalars(select(Budget.window).where(HAS_HELD).distinct())
    return min((resets_at(window, window_start(window, now)) for window in windows if window), default=None)
