"""Credits: one look for all who ask, on whatever replica, of an answer and of a failure alike."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from app.errors import UpstreamUnavailable
from app.models import PeriodicJob
from app.services import Services
from app.upstream.credits import FAILURE_KEPT_FOR, FRESH_FOR, known_credits
from app.workers.periodic import PRUNE, periodic_loop, prepare_jobs
from tests.support.clock import Clock
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
