"""How much of the upstream's rate a full queue uses."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence

from tests.bench.report import Figure
from tests.bench.stand import Stand, owner_in
from tests.bench.upstream import serving_upstream
from tests.support.filling import fill_queued

RATE, PERIOD = 20, 10
PERIODS = 6


def pace(stand: Stand) -> list[Figure]:
    """The upstream's pace used with a full queue, for a minute, and the most arrivals in one period."""
    database_url = stand.store.create(stand.new_name("pace"))
    # The first start inserts the key that the tasks belong to.
    with stand.running("pace", url=database_url):
        owner = owner_in(database_url)
    stand.fill(lambda database: fill_queued(database, [owner], RATE * (PERIODS + 2)), database_url)
    arrivals = asyncio.run(_listen(stand, database_url))
    # From each arrival to the one that a whole rate's requests later may come a period later at the earliest.
    used = [PERIOD / (later - earlier) * 100 for earlier, later in zip(arrivals, arrivals[RATE:], strict=False)]
    how = f"{len(arrivals)} arrivals in {PERIODS * PERIOD} s at {RATE}/{PERIOD} s"
    return [
        Figure("pace used", used, "%", how, at_least=97),
        Figure("most arrivals in any period", [_most(arrivals)], "", at_most=RATE),
    ]


async def _listen(stand: Stand, database_url: str) -> Sequence[float]:
    """The moments of arrival, from the first on for a minute."""
    async with serving_upstream() as upstream:
        with stand.running("pace", url=database_url, upstream_url=upstream.url, upstream_rate=f"{RATE}/{PERIOD}"):
            await upstream.until(posts=1)
            await asyncio.sleep(PERIODS * PERIOD + 0.1)
        return [at for at, _ in upstream.posts]


def _most(arrivals: Sequence[float]) -> int:
    """The most arrivals in any window of a period, which does not hold its end."""
    return max(bisect_left(arrivals, begin + PERIOD) - index for index, begin in enumerate(arrivals))
