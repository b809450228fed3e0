"""Whether work goes on: held and failing submits, overdue rows, and endpoints that take no webhooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

from app.clips.repository import idle_lanes
from app.config import Settings
from app.database.claims import count_overdue
from app.database.engine import Database
from app.enums import TaskStatus
from app.health.results import Check
from app.models import Clip, PeriodicJob, Task
from app.tasks.transitions import FINAL
from app.upstream.history import read_history
from app.upstream.hold import EXPLANATIONS, account_name, current_hold, other_refused_keys
from app.upstream.pacing import SHARE_WHILE_QUEUED, is_idle_since
from app.upstream.types import HoldReason
from app.webhooks.repository import (
    MAX_GIVEN_UP,
    count_given_up,
    count_overdue_deliveries,
    disabled_after_failures,
    failing_endpoints,
)

# How long a row may be late, and how long a failed submit counts if none follows it.
OVERDUE_AFTER, FAILING_FOR = timedelta(seconds=60), timedelta(minutes=10)
NO_WORKER = "does a worker run? Start `soundpost worker`, or `serve` without --no-loops"
SHOWN_ENDPOINTS = 5
DAY = timedelta(days=1)


async def check_queue(database: Database, settings: Settings) -> Check:
    """Whether our submits are held. The upstream's own message is left out, because anybody may read /readyz."""
    async with database.reads() as session:
        hold = await current_hold(session, settings.upstream_fingerprint)
        others = ", ".join(await other_refused_keys(session, settings.upstream_fingerprint))
    other = f"; those of processes with another key ({others}) are, because the upstream refuses it" if others else ""
    if not hold:
        return Check(status="ok", detail=f"submits are not held{other}")
    where = f" ({account_name(settings)})" if hold.reason is HoldReason.bad_key else ""
    why = f"{EXPLANATIONS[hold.reason]}{where}{other}"
    return Check(status="degraded", detail=f"submits are held since {hold.since.isoformat(timespec='seconds')}: {why}")


async def check_submits(database: Database, settings: Settings) -> Check:
    """When submits last succeeded and failed. Degraded while the last one failed with our key, not long ago."""
    async with database.reads() as session:
        history, now = await read_history(session), await database.now(session)
    mine = (None, settings.upstream_fingerprint)
    told = [
        f"last {kind} at {at.isoformat(timespec='seconds')}" + f" with the key {key}" * (key not in mine)
        for kind, at, key in (
            ("success", history.succeeded_at, history.succeeded_with),
            (f"failure ({history.failure})", history.failed_at, history.failed_with),
        )
        if at
    ]
    detail = f"{account_name(settings)}: {', '.join(told) or 'nothing was submitted yet'}"
    counts_since = max(now - FAILING_FOR, history.succeeded_at or now - FAILING_FOR)
    is_failing = history.failed_at is not None and history.failed_at > counts_since and history.failed_with in mine
    return Check(status="degraded" if is_failing else "ok", detail=detail)


async def check_overdue(database: Database, settings: Settings) -> Check:
    """
    Whether rows have been due for more than OVERDUE_AFTER, and not because of a hold, the rate or a slow host.

    Ended tasks never count: their late polls wait for slots that nothing else needs. Clips and deliveries
    count where nothing of their host is under way.
    """
    async with database.reads() as session:
        now = await database.now(session)
        late = now - OVERDUE_AFTER
        waiting = set(FINAL)
        if await current_hold(session, settings.upstream_fingerprint) or not await is_idle_since(session, late):
            waiting.add(TaskStatus.queued)
        if not await is_idle_since(session, late, SHARE_WHILE_QUEUED):
            waiting.add(TaskStatus.generating)
        # Jobs with a colon in their names are not for every replica, or only remember something.
        counts = {
            "tasks": await count_overdue(session, Task, late, Task.status.in_(set(TaskStatus) - waiting)),
            "clips": await count_overdue(session, Clip, late, Clip.lane.in_(await idle_lanes(session, now, late))),
            "deliveries": await count_overdue_deliveries(session, now, late, settings.webhook_lease),
            "periodic jobs": await count_overdue(session, PeriodicJob, late, ~PeriodicJob.name.contains(":")),
        }
    overdue = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not overdue:
        return Check(status="ok", detail="nothing is overdue")
    return Check(status="degraded", detail=f"overdue: {overdue}; {NO_WORKER}")


async def check_webhooks(database: Database, settings: Settings) -> Check:
    """Which webhooks do not arrive: only the owners of endpoints can repair them, so always `ok`."""
    window = DAY + sum(settings.webhook_schedule, timedelta())
    async with database.reads() as session:
        disabled = await disabled_after_failures(session, SHOWN_ENDPOINTS + 1)
        failing = await failing_endpoints(session, SHOWN_ENDPOINTS + 1)
        given_up = await count_given_up(session, await database.now(session) - window)
    told = [
        f"{what}: {_some(ids)}"
        for what, ids in (
            ("endpoints that fail now", failing),
            ("endpoints that are disabled because they failed", disabled),
        )
        if ids
    ]
    if given_up:
        most = "or more " * (given_up == MAX_GIVEN_UP)
        told.append(f"{given_up} {most}deliveries of the last {math.ceil(window / DAY)} days were given up")
    if not told:
        return Check(status="ok", detail="no endpoint fails or is disabled because it failed, and nothing was given up")
    advice = "their owners can enable repaired ones by PATCH, and get what was missed by POST …/recover"
    return Check(status="ok", detail=f"{'; '.join(told)}: {advice}")


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_ENDPOINTS]) + (", …" if len(ids) > SHOWN_ENDPOINTS else "")
