"""Pacing: no window of time has more requests than the rate, with any number of replicas, and after kills."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.config import Rate
from app.database.engine import Database
from app.upstream.pacing import Pacer, Slot
from tests.support.api import client_of, create_tasks
from tests.support.processes import Process, Processes
from tests.support.sandbox import journal, submits_at
from tests.support.wait import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PERIOD, HOLD = 10 * SECOND, 45 * SECOND


async def _ring(database: Database, requests: int = 4) -> Pacer:
    pacer = Pacer(Rate(requests, PERIOD), HOLD)
    async with database.writes.begin() as session:
        await pacer.prepare(session, NOW)
    return pacer


async def _take(database: Database, pacer: Pacer, now: datetime, limit: int = 100, share: float = 1.0) -> list[int]:
    async with database.writes.begin() as session:
        free = await pacer.lock_free(session, now, limit, share)
        await pacer.reserve(session, free, now)
    return list(free)


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 12), (timedelta(seconds=90), 90), (SECOND, 1)])
async def test_pause_that_the_upstream_did_not_measure_is_short(
    database: Database, retry_after: timedelta | None, seconds: int
) -> None:
    pacer = Pacer(Rate(4, 60 * SECOND), HOLD)
    async with database.writes.begin() as session:
        await pacer.prepare(session, NOW)
        await pacer.pause(session, NOW, retry_after)

    async with database.reads() as session:
        assert await pacer.next_free_in(session, NOW) == seconds * SECOND


async def test_ring_gives_as_many_slots_as_the_rate_and_then_none(database: Database) -> None:
    pacer = await _ring(database)

    first, second = await _take(database, pacer, NOW), await _take(database, pacer, NOW)

    assert sorted(first) == [0, 1, 2, 3]
    assert second == []


async def test_slot_is_free_again_a_period_after_its_answer(database: Database) -> None:
    pacer = await _ring(database, 1)
    async with database.writes.begin() as session:
        slots = await pacer.reserve(session, await pacer.lock_free(session, NOW, 1), NOW)
    answered = NOW + timedelta(seconds=3)
    async with database.writes.begin() as session:
        await pacer.release(session, [slots[0]], answered)

    too_soon = await _take(database, pacer, answered + PERIOD - timedelta(milliseconds=1))
    in_time = await _take(database, pacer, answered + PERIOD)

    assert (too_soon, in_time) == ([], [0])


async def test_slot_of_a_dead_process_comes_back_by_itself(database: Database) -> None:
    pacer = await _ring(database, 1)
    await _take(database, pacer, NOW)

    assert await _take(database, pacer, NOW + PERIOD + HOLD - timedelta(milliseconds=1)) == []
    assert await _take(database, pacer, NOW + PERIOD + HOLD) == [0]


async def test_late_answer_of_an_overtaken_process_frees_nothing(database: Database) -> None:
    pacer = await _ring(database, 1)
    async with database.writes.begin() as session:
        [lost] = await pacer.reserve(session, await pacer.lock_free(session, NOW, 1), NOW)
    later = NOW + PERIOD + HOLD
    await _take(database, pacer, later)
    async with database.writes.begin() as session:
        await pacer.release(session, [lost], later)

    assert await _take(database, pacer, later + PERIOD) == []


async def test_throttle_stops_every_slot_even_those_that_come_back_meanwhile(database: Database) -> None:
    pacer = await _ring(database, 2)
    async with database.writes.begin() as session:
        [slot] = await pacer.reserve(session, [0], NOW)
        await pacer.pause(session, NOW, timedelta(seconds=60))
        await pacer.release(session, [slot], NOW)
        wait = await pacer.next_free_in(session, NOW)

    assert wait == timedelta(seconds=60)
    assert await _take(database, pacer, NOW + timedelta(seconds=59)) == []
    assert sorted(await _take(database, pacer, NOW + timedelta(seconds=60))) == [0, 1]


async def test_polls_leave_most_slots_to_submits(database: Database) -> None:
    pacer = await _ring(database, 20)

    polls = await _take(database, pacer, NOW, share=0.25)
    submits = await _take(database, pacer, NOW)

    assert (len(polls), len(submits)) == (5, 15)


async def test_smaller_rate_takes_the_surplus_slots_away(database: Database) -> None:
    await _ring(database, 20)
    pacer = await _ring(database, 3)

    assert len(await _take(database, pacer, NOW)) == 3


async def test_no_window_holds_more_than_the_rate_whenever_requests_arrive(database: Database) -> None:
    pacer, rng = await _ring(database), random.Random(7)  # noqa: S311 - it plays chance
    arrivals: list[datetime] = []
    in_flight: list[tuple[datetime, Slot]] = []
    now = NOW
    for _ in range(300):
        now += rng.choice([0.1, 1, 3]) * SECOND
        for answered_at, slot in [sent for sent in in_flight if sent[0] <= now]:
            in_flight.remove((answered_at, slot))
            await _release(database, pacer, slot, now)
        slots = await _reserve(database, pacer, rng.randint(1, 6), now)
        for slot in slots:
            answered_at = now + rng.uniform(0, 12) * SECOND
            arrivals.append(now + rng.random() * (answered_at - now))
            if rng.random() < 0.9:  # else the process dies before the answer
                in_flight.append((answered_at, slot))

    assert len(arrivals) > 50
    assert _most_in_any(PERIOD, arrivals) <= 4


async def test_two_takers_never_share_a_slot(database: Database, database_url: str) -> None:
    pacer, other = await _ring(database), Database(database_url)

    taken = await asyncio.gather(*(_take(taker, pacer, NOW, limit=1) for taker in (database, other) * 5))
    await other.close()

    assert sorted(slot for slots in taken for slot in slots) == [0, 1, 2, 3]


async def test_replicas_keep_the_pace_together_through_a_kill(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, upstream_rate="20/1", upstream_timeout="1") as processes:
        # The upstream is told to take more than it would, so that too many would be seen to arrive.
        sandbox = await processes.sandbox(rate=1000)
        service = await processes.serve(database_url, sandbox.url, "--no-loops")
        workers = [processes.worker(database_url, sandbox.url, public_url=service.url) for _ in range(2)]
        async with client_of(service.url) as client:
            await create_tasks(client, 90)
            await eventually(lambda: _has_submits(sandbox, 40), 30)
            workers[0].kill()
            # What the dead one was about to send is not sent again.
            await eventually(lambda: _has_submits(sandbox, 70), 30)
        arrived, submits = await journal(sandbox.url, kind="request"), await submits_at(sandbox.url)
    # Audio and covers come from hosts that have no pace.
    arrivals = [request for request in arrived if request["path"].startswith("/api/")]

    # A submit that timed out before its body was sent tells the sandbox no task.
    named = [submit["caller_task_id"] for submit in submits if submit["caller_task_id"]]
    assert len(set(named)) == len(named)
    assert _most_in_any(SECOND, [NOW + arrival["monotonic"] * SECOND for arrival in arrivals]) <= 20


async def _reserve(database: Database, pacer: Pacer, limit: int, now: datetime) -> Sequence[Slot]:
    async with database.writes.begin() as session:
        return await pacer.reserve(session, await pacer.lock_free(session, now, limit), now)


async def _release(database: Database, pacer: Pacer, slot: Slot, now: datetime) -> None:
    async with database.writes.begin() as session:
        await pacer.release(session, [slot], now)


def _most_in_any(period: timedelta, moments: Sequence[datetime]) -> int:
    moments = sorted(moments)
    return max(sum(start <= moment < start + period for moment in moments) for start in moments)


async def _has_submits(sandbox: Process, count: int) -> bool:
    return len(await submits_at(sandbox.url)) >= count
