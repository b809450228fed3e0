"""What is left on the upstream's account: asked for rarely, at the same pace as everything else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from app.database.engine import Database
from app.upstream.pacing import Pacer, full_share
from app.upstream.suno.client import Upstream
from app.upstream.types import CreditsAnswer

FRESH_FOR = timedelta(seconds=10)
TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Credits:
    """How many credits there were, and when."""

    credits: Decimal
    checked_at: datetime


class CreditsUnavailable(Exception):
    """The upstream did not say how many credits are left."""

    def __init__(self, answer: CreditsAnswer | None) -> None:
        super().__init__(answer and answer.message)
        self.answer = answer


class CreditsCache:
    """Answers from memory for some seconds, so that callers who watch their credits cost no pace."""

    def __init__(self, database: Database, pacer: Pacer, upstream: Upstream) -> None:
        self._database, self._pacer, self._upstream = database, pacer, upstream
        self._asking = asyncio.Lock()
        self._latest: Credits | None = None

    async def credits(self) -> Credits:
        """What is left, at most 10 s old. Raises CreditsUnavailable."""
        async with self._asking:
            async with self._database.reads() as session:
                now = await self._database.now(session)
            if self._latest is None or now - self._latest.checked_at >= FRESH_FOR:
                self._latest = Credits(await self._ask(), now)
            return self._latest

    async def _ask(self) -> Decimal:
        slot = await self._pacer.wait_for_slot(self._database, TIMEOUT, full_share)
        if slot is None:
            raise CreditsUnavailable(None)
        try:
            answer = await self._upstream.credits()
        finally:
            async with self._database.writes.begin() as session:
                await self._pacer.release(session, *slot, await self._database.now(session))
        if answer.credits is None:
            raise CreditsUnavailable(answer)
        return answer.credits
