"""The credits that are left on the upstream's account, cached for some seconds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from app.database.engine import Database
from app.errors import UpstreamUnavailable
from app.upstream.gateway import UpstreamGateway
from app.upstream.pacing import full_share

FRESH_FOR = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Credits:
    """The credits on the upstream account, with fractions, and when it reported them."""

    credits: Decimal
    checked_at: datetime


class CreditsCache:
    """Caches the credits for FRESH_FOR, so that callers who watch them do not use up the upstream's rate."""

    def __init__(self, database: Database, gateway: UpstreamGateway) -> None:
        self._database, self._gateway = database, gateway
        self._refreshing = asyncio.Lock()
        self._latest: Credits | None = None

    async def credits(self) -> Credits:
        """The credits that are left, at most 10 seconds old. Raises UpstreamUnavailable."""
        async with self._refreshing:
            async with self._database.reads() as session:
                now = await self._database.now(session)
            if self._latest is None or now - self._latest.checked_at >= FRESH_FOR:
                self._latest = Credits(await self._fetch(), now)
            return self._latest

    async def _fetch(self) -> Decimal:
        result = await self._gateway.call(lambda upstream: upstream.credits(), full_share)
        if result is None or result.value is None:
            raise UpstreamUnavailable(
                detail="The upstream did not report its credits; retry in a few seconds.",
                upstream_code=result.code if result else None,
                upstream_message=result.message if result else None,
            )
        return result.value
