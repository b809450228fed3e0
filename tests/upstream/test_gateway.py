"""Every call to the upstream goes through the gateway: its slot, and the pause or the hold that its result asks for."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from app.database.engine import Database
from app.enums import TaskStatus
from app.errors import UpstreamUnavailable
from app.models import PaceSlot
from app.services import Services
from app.upstream.hold import RECHECK, Hold, current_hold, hold_submits
from app.upstream.pacing import PAUSE_SLOT, full_share
from app.upstream.types import HoldReason, Outcome, Result, Upstream
from app.workers.periodic import periodic_loop
from app.workers.poll import poll_loop
from app.workers.runner import Loop
from app.workers.submit import submit_loop
from tests.support.rows import add_key, add_task, reread
from tests.support.sandbox import serve_sandbox
from tests.support.service import services_of
from tests.upstream.suno.servers import answering, hang, serving

S = TaskStatus
Use = Callable[[Services], Awaitable[object]]


async def recheck_a_hold(services: Services) -> None:
    database = services.database
    async with database.transaction() as (session, now):
        await hold_submits(session, Hold(HoldReason.blocked, now, None), timedelta())
    loop = periodic_loop(services)
    [job] = [job for job in (await loop.claim(2)).items if job.name == RECHECK]
    await loop.work(job)


async def read_the_credits(services: Services) -> None:
    with pytest.raises(UpstreamUnavailable):
        await services.credits.credits()


async def fetch_lyrics(services: Services) -> None:
    await services.gateway.call(lambda upstream: upstream.lyrics("task", "clip"))


async def poll(services: Services) -> None:
    await services.gateway.call(lambda upstream: upstream.record_info("task"))


@pytest.mark.parametrize("use", [recheck_a_hold, read_the_credits, fetch_lyrics, poll])
async def test_throttled_call_pauses_all_replicas(database_url: str, use: Use) -> None:
    async with (
        serving(answering(200, b'{"code":405,"msg":"slow down"}')) as server,
        services_of(database_url, upstream_url=server.url) as services,
    ):
        await _prepare(services)

        await use(services)

        paused_for = await _paused_for(services.database)
    assert paused_for > timedelta(seconds=1)


@pytest.mark.parametrize(
    ("body", "warned_of"),
    [
        (b'{"code":500,"msg":"oh"}', [("failed", 500)]),
        (b'{"code":455,"msg":"maintenance"}', [("throttled", 455)]),
        (b"<html>Bad gateway</html>", [("failed", 200)]),
        (b'{"code":405,"msg":"slow down"}', []),
        (b'{"code":404,"msg":"unknown path"}', []),
        (b'{"code":200,"data":7}', []),
    ],
)
async def test_upstream_that_does_not_work_is_a_warning(
    database_url: str, body: bytes, warned_of: list[tuple[str, int]]
) -> None:
    async with serving(answering(200, body)) as server, services_of(database_url, upstream_url=server.url) as services:
        await _prepare(services)
        with capture_logs() as lines:
            await services.gateway.call(lambda upstream: upstream.credits(), full_share)

    warnings = [line for line in lines if line["event"] == "upstream_call_failed"]
    assert [(line["log_level"], line["outcome"], line["upstream_code"]) for line in warnings] == [
        ("warning", *each) for each in warned_of
    ]


@pytest.mark.parametrize("use", [read_the_credits, fetch_lyrics, poll])
async def test_refused_key_holds_submits(database_url: str, use: Use) -> None:
    async with (
        serve_sandbox() as upstream_url,
        services_of(database_url, upstream_url=upstream_url, upstream_api_key="wrong") as services,
    ):
        await _prepare(services)

        await use(services)

        async with services.database.reads() as session:
            hold = await current_hold(session)
    assert hold is not None
    assert hold.reason is HoldReason.bad_key


async def test_key_that_replaced_a_refused_one_is_not_held_for_it(database_url: str) -> None:
    async with (
        serving(answering(401, b'{"code":401,"msg":"unauthorized"}')) as server,
        services_of(database_url, upstream_url=server.url) as services,
    ):

        async def replace_the_key_meanwhile(upstream: Upstream) -> Result[Any]:
            answer = await upstream.credits()
            services.gateway.key = "the-new-one"
            return answer

        await services.gateway.call(replace_the_key_meanwhile)
        async with services.database.reads() as session:
            hold = await current_hold(session)

    assert hold is None


async def test_check_by_an_operator_holds_no_submits(database_url: str) -> None:
    async with (
        serve_sandbox() as upstream_url,
        services_of(database_url, upstream_url=upstream_url, upstream_api_key="wrong") as services,
    ):
        await _prepare(services)

        result = await services.gateway.call(lambda it: it.credits(), full_share, may_hold=False)

        async with services.database.reads() as session:
            hold = await current_hold(session)
    assert result is not None
    assert (result.outcome, hold) == (Outcome.held, None)


async def test_cancelled_call_releases_its_slot(database_url: str) -> None:
    async with services_of(database_url) as services:
        await _prepare(services)
        has_begun = asyncio.Event()

        async def never_return(_: Upstream) -> Result[None]:
            has_begun.set()
            await asyncio.sleep(60)
            raise AssertionError("it was not cancelled")

        calling = asyncio.create_task(services.gateway.call(never_return))
        await has_begun.wait()
        reserved = await _reserved(services.database)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)

        assert (reserved, await _reserved(services.database)) == (1, 0)


@pytest.mark.parametrize(("status", "make_loop"), [(S.queued, submit_loop), (S.generating, poll_loop)])
async def test_cancelled_submit_or_poll_releases_its_slot_and_leaves_its_row_to_the_lease(
    database_url: str, status: TaskStatus, make_loop: Callable[[Services], Loop[Any]]
) -> None:
    async with serving(hang) as server, services_of(database_url, upstream_url=server.url) as services:
        await _prepare(services)
        task = await add_task(services.database, await add_key(services.database), status, upstream_task_id="up-1")
        loop = make_loop(services)
        [claimed] = (await loop.claim(1)).items

        working = asyncio.ensure_future(loop.work(claimed))
        await server.until(1)
        reserved = await _reserved(services.database)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

        assert (reserved, await _reserved(services.database)) == (1, 0)
        assert (await reread(services.database, task.id)).fence == claimed.task.fence


async def _prepare(services: Services) -> None:
    async with services.database.transaction() as (session, now):
        await services.gateway.pacer.prepare(session, now)


async def _paused_for(database: Database) -> timedelta:
    async with database.reads() as session:
        until = (await session.scalars(select(PaceSlot.free_at).where(PaceSlot.slot == PAUSE_SLOT))).one()
        return until - await database.now(session)


async def _reserved(database: Database) -> int:
    async with database.reads() as session:
        return len((await session.scalars(select(PaceSlot.slot).where(PaceSlot.fence.isnot(None)))).all())
