"""Models that the upstream refuses: found by a few submits, and tried again by one task at a time, for all replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import select

from app.database.engine import Session, insert_new, on_commit
from app.database.wakeups import SUBMITS, notify_on_commit
from app.models import PeriodicJob
from app.upstream.types import Outcome, Result

log = structlog.get_logger()

# The row never falls due. It holds for each model that is in doubt: `tasks`, which were refused since its last success;
# `message`, the upstream's latest words; and once it is refused `since`, `probe_at`, when a task may be sent for it to
# see whether it still is, and `waiting`, how many were sent back to the queue since the last one was.
ROW = "refused:models"
# So many tasks in a row, without a success in between, make a model refused.
MAX_REFUSALS = 3
# So many tasks of a refused model are due again at a time, and the others later, up to so many rechecks: a long queue
# of it is not claimed as a whole again and again.
AT_ONCE, MAX_RECHECKS = 50, 20
# Without a task that was sent for so long after one could be, nothing is known of a model any more.
FORGOTTEN_AFTER = timedelta(minutes=10)
MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class RefusedModel:
    """A model that the upstream refuses: its name as it is sent, since when, and the upstream's words."""

    name: str
    since: datetime
    message: str


def is_about_model(result: Result[Any]) -> bool:
    """Whether a submit was refused for its model. A refusal that names the prompt is about that."""
    message = (result.message or "").lower()
    return result.outcome is Outcome.invalid and "model" in message and "prompt" not in message


class Refusals:
    """The models in doubt, as the row holds them; `recheck` is the time between two probes of one."""

    def __init__(self, doubts: Mapping[str, Any], recheck: timedelta) -> None:
        self._doubts, self._recheck = deepcopy(dict(doubts)), recheck

    @property
    def stored(self) -> dict[str, Any]:
        """What the row is to hold."""
        return deepcopy(self._doubts)

    def refused(self, now: datetime) -> Sequence[RefusedModel]:
        """The models that are refused now."""
        return [
            RefusedModel(name, datetime.fromisoformat(doubt["since"]), doubt["message"])
            for name, doubt in sorted(self._doubts.items())
            if self.is_refused(name, now)
        ]

    def is_refused(self, model: str, now: datetime) -> bool:
        """Whether the upstream refuses a model, as far as is known now."""
        doubt = self._doubts.get(model, {})
        return "since" in doubt and now < datetime.fromisoformat(doubt["probe_at"]) + FORGOTTEN_AFTER

    def is_changed_by(self, model: str, result: Result[Any]) -> bool:
        """Whether a result tells something new about a model."""
        return is_about_model(result) or (result.outcome is Outcome.ok and model in self._doubts)

    def note(self, task_id: str, model: str, result: Result[Any], now: datetime) -> None:
        """Take in the result of a submit: a success clears its model, MAX_REFUSALS tasks without make it refused."""
        if result.outcome is Outcome.ok:
            self._doubts.pop(model, None)
        if not is_about_model(result):
            return
        if not self.is_refused(model, now) and "since" in self._doubts.get(model, {}):
            del self._doubts[model]
        doubt = self._doubts.setdefault(model, {"tasks": []})
        doubt["message"] = (result.message or "")[:MAX_SHOWN]
        if task_id not in doubt["tasks"] and len(doubt["tasks"]) < MAX_REFUSALS:
            doubt["tasks"].append(task_id)
        if len(doubt["tasks"]) == MAX_REFUSALS and "since" not in doubt:
            probe_at = now + self._recheck
            doubt |= {"since": now.isoformat(), "probe_at": probe_at.isoformat(), "waiting": 0}

    def wait_until(self, model: str, now: datetime) -> datetime:
        """When a task of a refused model, which is not sent, is due again."""
        doubt = self._doubts[model]
        doubt["waiting"] += 1
        first = max(datetime.fromisoformat(doubt["probe_at"]), now)
        rechecks: int = min((doubt["waiting"] - 1) // AT_ONCE, MAX_RECHECKS)
        return first + rechecks * self._recheck

    def take_probe(self, model: str, now: datetime) -> bool:
        """Whether a task of a refused model may be sent to see what comes; says so once in a recheck."""
        doubt = self._doubts[model]
        due_at = datetime.fromisoformat(doubt["probe_at"])
        if now < due_at:
            return False
        doubt |= {"probe_at": (max(due_at, now - self._recheck) + self._recheck).isoformat(), "waiting": 0}
        return True


async def read_refusals(session: Session, recheck: timedelta) -> Refusals:
    """What is known of models that may be refused."""
    detail = await session.scalar(select(PeriodicJob.detail).where(PeriodicJob.name == ROW))
    return Refusals(detail or {}, recheck)


async def change_refusals(
    session: Session, recheck: timedelta, now: datetime, change: Callable[[Refusals], None]
) -> None:
    """Change what is known, with the row locked until the transaction ends."""
    await insert_new(session, PeriodicJob, {"name": ROW, "attempts": 0, "detail": {}})
    row = await session.get_one(PeriodicJob, ROW, with_for_update=True, populate_existing=True)
    refusals = Refusals(row.detail, recheck)
    before = {model.name for model in refusals.refused(now)}
    change(refusals)
    row.detail = refusals.stored
    after = {model.name: model.message for model in refusals.refused(now)}
    for name in after.keys() - before:
        on_commit(session, partial(log.warning, "model_refused", model=name, upstream_message=after[name]))
    for name in before - after.keys():
        on_commit(session, partial(log.info, "model_taken_again", model=name))
    if before - after.keys():
        notify_on_commit(session, SUBMITS)
