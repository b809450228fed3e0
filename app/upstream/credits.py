"""The credits that are left on the upstream's account: one answer for all replicas, remembered for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import structlog

from app.database.engine import Database, Session, insert_new
from app.errors import UpstreamUnavailable
from app.models import PeriodicJob
from app.upstream.gateway import UpstreamGateway
from app.upstream.pacing import credits_share

log = structlog.get_logger()

# The row that holds the latest answer. It never falls due.
ROW = "last:credits"
FRESH_FOR = timedelta(seconds=10)
FAILURE_KEPT_FOR = timedelta(seconds=5)
# How long a caller waits for an answer, and how often it looks for the one that another replica asks for.
MAX_WAIT = timedelta(seconds=15)
LOOK_EVERY = timedelta(seconds=0.25)
# The balance is compared with what it was so long ago, by looks of which one in each hour is kept.
COMPARED_OVER, KEPT_EVERY = timedelta(hours=24), timedelta(hours=1)
# What the ledgers say was charged so far, in thousandths of credits.
ChargedSoFar = Callable[[Session], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Credits:
    """The credits on the upstream account, with fractions, and when it reported them."""

    credits: Decimal
    checked_at: datetime


@dataclass(frozen=True, slots=True)
class KnownCredits(Credits):
    """
    The credits when the upstream told them last, and what the ledgers said was charged until then.

    `drift` is what has left the balance `since` then without a charge in a ledger; below 0 it came in.
    """

    charged: Decimal
    drift: Decimal
    since: datetime


class CreditsCache:
    """
    Requests the credits at most once in 10 seconds, or in 5 after a failure, for all replicas together.

    Callers who watch the credits must not use up the upstream's rate. `lease` is longer than
    a call takes: after it, the replica that made the request is taken for dead.
    """

    def __init__(
        self, database: Database, gateway: UpstreamGateway, lease: timedelta, charged_so_far: ChargedSoFar
    ) -> None:
        self._database, self._gateway, self._lease = database, gateway, lease
        self._charged_so_far = charged_so_far
        self._asking: asyncio.Task[Mapping[str, Any]] | None = None

    async def credits(self) -> Credits:
        """The credits that are left, at most 10 seconds old. Raises UpstreamUnavailable."""
        async with self._database.reads() as session:
            row = await session.get(PeriodicJob, ROW)
            kept = _fresh(row.detail, await self._database.now(session)) if row else None
        answer = kept if kept is not None else await self._shared_answer()
        if answer.get("credits") is None:
            raise UpstreamUnavailable(
                detail="The upstream did not report its credits; retry in a few seconds.",
                upstream_code=answer.get("code"),
                upstream_message=answer.get("message"),
            )
        return Credits(Decimal(answer["credits"]), datetime.fromisoformat(answer["at"]))

    async def close(self) -> None:
        """End a look whose callers may have gone, while its slot can still be released."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _shared_answer(self) -> Mapping[str, Any]:
        """What comes of one look for all callers of this process who wait; empty if that takes too long."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asking), MAX_WAIT.total_seconds())
        except TimeoutError:
            return {}

    async def _look(self) -> Mapping[str, Any]:
        """Ask the upstream, unless another replica does: then wait for its answer."""
        while True:
            async with self._database.transaction() as (session, now):
                row = await _lock(session)
                answer = _fresh(row.detail, now)
                if answer is not None:
                    return answer
                asked_until = row.detail.get("asked_until")
                is_mine = asked_until is None or datetime.fromisoformat(asked_until) <= now
                if is_mine:
                    row.detail = {"asked_until": (now + self._lease).isoformat(), "known": row.detail.get("known")}
            if is_mine:
                return await self._ask()
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def _ask(self) -> Mapping[str, Any]:
        began = time.monotonic()
        result = await self._gateway.call(lambda upstream: upstream.credits(), credits_share)
        value = result.value if result else None
        log.info(
            "credits",
            outcome=result.outcome.value if result else "no_slot",
            credits=None if value is None else str(value),
            upstream_code=result and result.code,
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        async with self._database.transaction() as (session, now):
            if value is not None:
                await note_credits(session, value, await self._charged_so_far(session), now)
            row = await _lock(session)
            row.detail = {
                "at": now.isoformat(),
                "credits": None if value is None else str(value),
                "code": result.code if result else None,
                "message": result.message if result else None,
                "known": row.detail.get("known"),
            }
            return row.detail


async def note_credits(session: Session, left: Decimal, charged: int, now: datetime) -> None:
    """
    Keep what the upstream has told of the credits, whoever asked, with what the ledgers say was charged until now.

    Never commits.
    """
    row = await _lock(session)
    look = {"credits": str(left), "charged": charged, "at": now.isoformat()}
    looks = list((row.detail.get("known") or {"looks": []})["looks"])
    if not looks or _age(looks[-1], now) >= KEPT_EVERY:
        looks.append(look)
    while len(looks) > 1 and _age(looks[1], now) >= COMPARED_OVER:
        del looks[0]
    row.detail = {**row.detail, "known": {**look, "looks": looks}}


async def known_credits(session: Session) -> KnownCredits | None:
    """What the upstream last told of the credits, however long ago; None if it never has."""
    row = await session.get(PeriodicJob, ROW)
    known = row.detail.get("known") if row else None
    if known is None:
        return None
    first, charged = known["looks"][0], known["charged"]
    left, added = Decimal(known["credits"]), Decimal(charged - first["charged"]) / 1000
    return KnownCredits(
        left,
        datetime.fromisoformat(known["at"]),
        Decimal(charged) / 1000,
        Decimal(first["credits"]) - left - added,
        datetime.fromisoformat(first["at"]),
    )


def _age(look: Mapping[str, Any], now: datetime) -> timedelta:
    return now - datetime.fromisoformat(look["at"])


async def _lock(session: Session) -> PeriodicJob:
    await insert_new(session, PeriodicJob, {"name": ROW, "attempts": 0, "detail": {}})
    return await session.get_one(PeriodicJob, ROW, with_for_update=True, populate_existing=True)


def _fresh(answer: Mapping[str, Any], now: datetime) -> Mapping[str, Any] | None:
    """The answer that is stored, if there is one and it is young enough."""
    if "at" not in answer:
        return None
    kept_for = FAILURE_KEPT_FOR if answer["credits"] is None else FRESH_FOR
    return answer if now - datetime.fromisoformat(answer["at"]) < kept_for else None
