"""Entering the queue: orders for which the budgets of their keys have room, or that are held until there is some."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from app.budgets.admission import Verdict, Wanted
from app.config import Settings
from app.database.engine import Session
from app.database.wakeups import SUBMITS, notify_on_commit
from app.enums import EntryKind
from app.errors import BudgetExceeded
from app.tasks.events import EventRecorder
from app.tasks.queue.insertion import Order, insert_tasks

# The columns of a task and `clips`, or why there is none.
Entered = SimpleNamespace | BudgetExceeded


async def enter(
    session: Session, settings: Settings, recorder: EventRecorder, orders: Sequence[Order], now: datetime
) -> Sequence[Entered]:
    """
    Store tasks, each with its first event, of which no receiver is told; they are due now, or held.

    Returns for each order the columns of its task and `clips`, or why it is refused, and nothing of it is stored.
    """
    notify_on_commit(session, SUBMITS)
    wanted = [_wanted(order, settings) for order in orders]
    verdicts = await recorder.admit(session, wanted, now, settings.lowest_price)
    admitted = [
        (order, _columns(each, verdict, now))
        for order, each, verdict in zip(orders, wanted, verdicts, strict=True)
        if not isinstance(verdict, BudgetExceeded)
    ]
    stored = await insert_tasks(session, admitted, settings.default_model, now)
    recorder.note_created(session, stored, now)
    tasks = iter(stored)
    return [verdict if isinstance(verdict, BudgetExceeded) else next(tasks) for verdict in verdicts]


def _wanted(order: Order, settings: Settings) -> Wanted:
    key_id, body, *_ = order
    return Wanted(key_id, settings.price_of(body.model or settings.default_model), body.hold)


def _columns(wanted: Wanted, verdict: Verdict, now: datetime) -> dict[str, Any]:
    """What the decision about an order makes of its task. Without a time it is held, and not due."""
    reserved = {"booked": EntryKind.reserve, "reserved_at": verdict, "due_at": now}
    return {"price": wanted.price, **(reserved if verdict is not None else {"due_at": None})}


def admitted(outcome: Entered) -> SimpleNamespace:
    """The task of an order that was stored. Raises BudgetExceeded for one that was refused."""
    if isinstance(outcome, BudgetExceeded):
        raise outcome
    return outcome
