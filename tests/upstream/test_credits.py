"""Credits: one look for all who ask, on whatever replica, of an answer and of a failure alike."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.database.engine import Database
from app.errors import UpstreamUnavailable
from app.models import PeriodicJob
from app.services import Services
from app.upstream.credits import FAILURE_KEPT_FOR, FRESH_FOR, ROW, known_credits, note_credits
from app.workers.periodic import PRUNE, periodic_loop, prepare_jobs
from tests.support.clock import MORNING, Clock
from tests.support.service import services_of
from tests.upstream.suno.servers import answering, hang, serving

GOOD = b'{"code":200,"msg":"success","data":12.5}'
BAD = b'{"code":500,"msg":"broken"}'


@pytest.mark.parametrize("body", [GOOD, BAD])
async def test_all_replicas_share_one_look(database_url: str, body: bytes) -> None:
    clock = Clock()
    async with (
        serving(answering(200, body)) as server,
        services_of(database_url, clock, upstream_url=server.url) as one,
        services_of(database_url, clock, upstream_url=server.url) as other,
    ):
        await _prepare(one)
        first = await asyncio.gather(*(_ask(each) for each in (one, other) for _ in range(5)))
        later = [await _ask(each) for each in (one, other)]
        looks = server.connections

        clock.advance(seconds=(FRESH_FOR if body is GOOD else FAILURE_KEPT_FOR).total_seconds())
        await _ask(other)

    assert set(map(str, first + later)) == {"12.5" if body is GOOD else "broken"}
    assert (looks, server.connections) == (1, 2)


@pytest.mark.parametrize("body", [GOOD, BAD])
async def test_balance_is_looked_at_every_five_minutes_whoever_asks(database_url: str, body: bytes) -> None:
    clock = Clock()
    async with (
        serving(answering(200, body)) as server,
        services_of(database_url, clock, upstream_url=server.url) as services,
    ):
        await _prepare(services)
        async with services.database.transaction() as (session, now):
            await prepare_jobs(session, now)
            await session.delete(await session.get_one(PeriodicJob, PRUNE))
        loop = periodic_loop(services)
        looks = list[int]()
        for _ in range(11):
            for job in (await loop.claim(2)).items:
                await loop.work(job)
            looks.append(server.connections)
            clock.advance(seconds=60)
        async with services.database.reads() as session:
            known = await known_credits(session)

    assert looks == [0] * 5 + [1] * 5 + [2]
    assert (known and str(known.credits)) == ("12.5" if body is GOOD else None)


async def test_drift_is_what_left_the_balance_without_a_charge(database: Database) -> None:
    found = []
    looks = [("100", 0), ("97.5", 2500), ("90", 5000), ("90", 5000), ("190", 5000), ("187.5", 4000)]
    for minutes, (left, charged) in enumerate(looks):
        now = MORNING + timedelta(minutes=5 * minutes)
        async with database.transaction() as (session, _):
            await note_credits(session, Decimal(left), charged, now)
            known = await known_credits(session)
        assert known is not None
        assert (known.credits, known.charged, known.checked_at) == (Decimal(left), Decimal(charged) / 1000, now)
        assert known.since == MORNING
        found.append(known.drift)

    assert found == [Decimal(drift) for drift in ("0", "0", "5", "5", "-95", "-91.5")]


async def test_drift_is_told_over_a_day(database: Database) -> None:
    drifts, sizes = [], []
    # A credit leaves the account with each look, of which there are twelve an hour.
    for number in range(12 * 27):
        now = MORNING + timedelta(minutes=5 * number)
        async with database.transaction() as (session, _):
            await note_credits(session, Decimal(1000 - number), 0, now)
            known = await known_credits(session)
            sizes.append(len((await session.get_one(PeriodicJob, ROW)).detail["known"]["looks"]))
        assert known is not None
        assert known.drift == (known.checked_at - known.since) / timedelta(minutes=5)
        drifts.append(known.drift)

    assert drifts[: 12 * 24 + 1] == [*range(12 * 24 + 1)]
    assert all(12 * 24 <= drift < 12 * 25 for drift in drifts[12 * 24 :])
    assert max(sizes) == 25


async def test_drift_is_told_however_long_nobody_looked(database: Database) -> None:
    for days, left in ((0, "100"), (30, "60")):
        async with database.transaction() as (session, _):
            await note_credits(session, Decimal(left), 0, MORNING + timedelta(days=days))
            known = await known_credits(session)

    assert known is not None
    assert (known.drift, known.since) == (Decimal(40), MORNING)


async def test_callers_do_not_wait_in_line_for_an_upstream_that_is_silent(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.upstream.credits.MAX_WAIT", timedelta(seconds=0.5))
    async with serving(hang) as server, services_of(database_url, upstream_url=server.url) as services:
        await _prepare(services)
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(_ask(services) for _ in range(20)))
        took = asyncio.get_running_loop().time() - began
        looks = server.connections

    assert answers == [None] * 20
    assert took < 3
    assert looks == 1


async def test_look_that_a_stop_ends_gives_its_slot_back(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.upstream.credits.MAX_WAIT", timedelta(seconds=0.5))
    async with serving(hang) as server:
        async with services_of(database_url, upstream_url=server.url, upstream_rate="5/10") as services:
            await _prepare(services)
            assert await _ask(services) is None
            assert server.connections == 1
        async with (
            services_of(database_url, upstream_url=server.url, upstream_rate="5/10") as next_one,
            next_one.database.transaction() as (session, now),
        ):
            later = now + next_one.settings.upstream_rate.period
            free = await next_one.gateway.pacer.lock_free(session, later, 5)

    assert len(free) == 5


async def test_looks_use_a_small_part_of_the_pace(database_url: str) -> None:
    clock = Clock()
    settings: dict[str, Any] = {"upstream_rate": "20/100"}
    async with (
        serving(answering(200, BAD)) as server,
        services_of(database_url, clock, upstream_url=server.url, **settings) as services,
    ):
        await _prepare(services)
        for _ in range(2):
            await _ask(services)
            clock.advance(seconds=FAILURE_KEPT_FOR.total_seconds())
        asking = asyncio.create_task(_ask(services))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asking), 0.5)
        async with services.database.transaction() as (session, now):
            free = await services.gateway.pacer.lock_free(session, now, 20)
        clock.advance(seconds=100)
        await asking

    assert (len(free), server.connections) == (18, 3)


async def _ask(services: Services) -> Any:
    """The credits, or the upstream's message where it did not say how many there are."""
    try:
        return (await services.credits.credits()).credits
    except UpstreamUnavailable as error:
        return error.members["upstream_message"]


async def _prepare(services: Services) -> None:
    async with services.database.transaction() as (session, now):
        await services.gateway.pacer.prepare(session, now)
