"""What a scrape shows beside the counters of the processes: what is stored, which is the same on every replica."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, cast

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy import ColumnElement, Row, Select, union_all

from app import __version__
from app.budgets.repository import count_exhausted, count_held
from app.database.claims import MAX_COUNTED, backlog
from app.database.failures import advice
from app.enums import TaskStatus
from app.models import Clip, Delivery, PeriodicJob, StoredObject, Task
from app.services import Services
from app.tasks.transitions import FINAL
from app.upstream.credits import KnownCredits, known_credits
from app.upstream.hold import current_hold
from app.upstream.pacing import slots_in_use
from app.upstream.refusals import read_refusals
from app.upstream.types import HoldReason

log = structlog.get_logger()

# How long what was read is shown again, and how long a scrape waits for the database.
FRESH_FOR, TIMEOUT = timedelta(seconds=5), timedelta(seconds=3)
# What waits for which worker, by the states of tasks. A late poll is of a task that has ended, and can wait.
_KINDS = {status.value: "late_poll" if status in FINAL else "poll" for status in TaskStatus}
_KINDS[TaskStatus.queued.value] = "submit"
_WAITS = Delivery.due_at.isnot(None), ~Delivery.is_ready


def _of_status(status: TaskStatus) -> Select[*tuple[Any, ...]]:
    return backlog(status.value, Task, [Task.due_at, Task.id], Task.status == status, Task.due_at.isnot(None))


_LANES = [Delivery.api_key_id, Delivery.host, Delivery.lane, Delivery.due_at]
_READY = cast("ColumnElement[bool]", Delivery.is_ready)
# Jobs with a colon in their names are not for every replica, or only remember something.
_JOBS = PeriodicJob.due_at.isnot(None), ~PeriodicJob.name.contains(":")
_BACKLOG = union_all(
    *map(_of_status, TaskStatus),
    backlog("archive", Clip, [Clip.lane, Clip.attempts, Clip.due_at]),
    # Those that are ready stand in lanes; the others follow at their time.
    backlog("deliver", Delivery, _LANES, _READY),
    backlog("deliver", Delivery, [Delivery.due_at], *_WAITS),
    backlog("remove_files", StoredObject, [StoredObject.due_at]),
    backlog("periodic", PeriodicJob, [], *_JOBS),
)


class MetricsPage:
    """The text that Prometheus scrapes. The database is asked at most once in FRESH_FOR, by one scrape at a time."""

    def __init__(self, services: Services) -> None:
        self._services, self._metrics = services, services.metrics
        self._lock = asyncio.Lock()
        self._stored: Sequence[Metric] = ()
        self._stale_at = 0.0

    async def render(self) -> bytes:
        """All metrics; those of the database are left out while it does not answer."""
        async with self._lock:
            if time.monotonic() >= self._stale_at:
                self._stored = await self._read()
                self._stale_at = time.monotonic() + FRESH_FOR.total_seconds()
        return generate_latest(_Collected([_build_info()], self._metrics.collect(), self._stored))

    async def _read(self) -> Sequence[Metric]:
        is_up = _gauge("soundpost_database_up", "1 if the database has answered this scrape, or one just before it.")
        try:
            async with asyncio.timeout(TIMEOUT.total_seconds()):
                found = await self._read_stored()
        # Not only TRANSIENT: drivers raise TypeError for parameters of the URL that they do not know.
        except Exception as error:
            log.warning("stored_metrics_not_read", error=type(error).__name__, reason=advice(error))
            is_up.add_metric([], 0)
            return [is_up]
        is_up.add_metric([], 1)
        return [is_up, *found]

    async def _read_stored(self) -> Sequence[Metric]:
        database, key = self._services.database, self._services.gateway.key
        async with database.reads() as session:
            now = await database.now(session)
            rows = (await session.execute(_BACKLOG, {"now": now})).all()
            in_use, slots = await slots_in_use(session, now)
            hold = await current_hold(session, key)
            credits_ = await known_credits(session)
            exhausted = await count_exhausted(session, self._services.settings.lowest_price, now)
            waiting = await count_held(session, MAX_COUNTED)
            refusals = await read_refusals(session, self._services.settings.hold_recheck)
        return [
            *_backlog_gauges(rows, now),
            _single("soundpost_pace_slots_in_use", "Slots of the upstream's rate that are taken now.", in_use),
            _single("soundpost_pace_slots", "Slots of the upstream's rate: requests in one of its windows.", slots),
            _held(hold.reason if hold else None),
            _single("soundpost_budgets_exhausted", "Keys whose budget has no room for another task now.", exhausted),
            _single("soundpost_tasks_held", "Tasks that wait for room in a budget; counted up to 10000.", waiting),
            _single(
                "soundpost_refused_models",
                "Models that the upstream refuses; `/readyz` names them.",
                len(refusals.refused(now)),
            ),
            *_credits_gauges(credits_),
        ]


def _build_info() -> Metric:
    info = _gauge("soundpost_build_info", "1, with the version that runs.", "version")
    info.add_metric([__version__], 1)
    return info


def _backlog_gauges(rows: Iterable[Row[*tuple[Any, ...]]], now: datetime) -> Sequence[Metric]:
    tasks = _gauge("soundpost_tasks", "Tasks that have not ended, by state; counted up to 10000 of each.", "status")
    due_rows = _gauge("soundpost_due_rows", "Rows that wait for a worker since now or before; up to 10000.", "kind")
    ages = _gauge("soundpost_oldest_due_age_seconds", "For how long the oldest of them waits; 0 without any.", "kind")
    due: Counter[str] = Counter()
    oldest: dict[str, datetime] = {}
    for name, waiting, is_due, since in rows:
        kind = _KINDS.get(name, name)
        due[kind] += is_due
        oldest[kind] = min(oldest.get(kind, now), since or now)
        if kind in ("submit", "poll"):
            tasks.add_metric([name], waiting)
    for kind, since in oldest.items():
        due_rows.add_metric([kind], due[kind])
        ages.add_metric([kind], (now - since).total_seconds())
    return [tasks, due_rows, ages]


def _held(reason: HoldReason | None) -> Metric:
    held = _gauge("soundpost_submits_held", "1 for the reason for which submits are held, 0 for all others.", "reason")
    for each in HoldReason:
        held.add_metric([each.value], each is reason)
    return held


def _credits_gauges(known: KnownCredits | None) -> Sequence[Metric]:
    if known is None:
        return ()
    told = "Credits on the upstream account, when they were last looked at."
    return [
        _single("soundpost_credits", told, float(known.credits)),
        _single("soundpost_credits_checked_timestamp_seconds", "When that was.", known.checked_at.timestamp()),
        _single("soundpost_charged_credits", "What was charged until then, by the ledgers.", float(known.charged)),
    ]


def _single(name: str, help_text: str, value: float) -> Metric:
    gauge = _gauge(name, help_text)
    gauge.add_metric([], value)
    return gauge


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, labels=labels)


class _Collected(CollectorRegistry):
    """What is rendered: metrics that were collected already."""

    def __init__(self, *collected: Iterable[Metric]) -> None:
        super().__init__()
        self._collected = collected

    def collect(self) -> Iterator[Metric]:
        yield from chain.from_iterable(self._collected)
