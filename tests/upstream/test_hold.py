"""The held queue: nothing is sent while the upstream takes nothing, and it goes on by itself."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import cast

import pytest
from sqlalchemy import update

from app.database.engine import Database
from app.enums import Charge, ErrorCode, TaskStatus
from app.health.upstream import UpstreamChecks
from app.models import PeriodicJob
from app.upstream.hold import (
    EXPLANATIONS,
    RECHECK,
    Hold,
    current_hold,
    forget_stale_holds,
    hold_submits,
    release_submits,
)
from app.upstream.types import HoldReason, Outcome, Result
from app.workers.periodic import MAX_UNCLEAR_LOOKS, periodic_loop, reason_to_hold
from app.workers.submit import MAX_BLOCKED, submit_loop
from tests.support.clock import MORNING
from tests.support.receivers import Reply, receiving
from tests.support.rows import add_key, add_task, reread
from tests.support.sandbox import serve_sandbox
from tests.support.service import Service, serve, services_of
from tests.support.wait import eventually

RECHECK_IN = timedelta(seconds=30)


def _credits(amount: str) -> Result[Decimal]:
    return Result(Outcome.ok, Decimal(amount))


@pytest.mark.parametrize(
    ("answer", "before", "after"),
    [
        (_credits("0.5"), HoldReason.no_credits, None),
        (_credits("1000"), HoldReason.bad_key, None),
        (_credits("1000"), HoldReason.blocked, None),
        (_credits("0"), HoldReason.no_credits, HoldReason.no_credits),
        (_credits("-1"), HoldReason.bad_key, HoldReason.no_credits),
        (Result(Outcome.failed), HoldReason.no_credits, HoldReason.no_credits),
        (Result(Outcome.throttled), HoldReason.blocked, HoldReason.blocked),
        (
            Result(Outcome.held, hold_reason=HoldReason.bad_key),
            HoldReason.no_credits,
            HoldReason.bad_key,
        ),
    ],
)
def test_hold_ends_only_when_a_recheck_allows_it(
    answer: Result[Decimal], before: HoldReason, after: HoldReason | None
) -> None:
    assert reason_to_hold(answer, before) is after


async def test_hold_is_in_force_until_it_is_released(database: Database) -> None:
    await _hold(database, HoldReason.no_credits)
    held = await _current(database)
    async with database.writes.begin() as session:
        await release_submits(session)

    assert held == Hold(HoldReason.no_credits, MORNING, "No credits.")
    assert await _current(database) is None


async def test_hold_in_force_keeps_its_start_and_its_next_recheck(database: Database) -> None:
    await _hold(database, HoldReason.no_credits)

    await _hold(database, HoldReason.bad_key, later=timedelta(seconds=20))

    assert await _current(database) == Hold(HoldReason.bad_key, MORNING, "No credits.")
    async with database.reads() as session:
        assert (await session.get_one(PeriodicJob, RECHECK)).due_at == MORNING + RECHECK_IN


async def test_hold_after_a_release_begins_anew(database: Database) -> None:
    await _hold(database, HoldReason.no_credits)
    async with database.writes.begin() as session:
        await release_submits(session)

    await _hold(database, HoldReason.no_credits, later=timedelta(hours=1))

    held = await _current(database)
    assert held is not None
    assert held.since == MORNING + timedelta(hours=1)


async def test_recheck_of_a_killed_process_is_due_again_within_a_minute(database: Database) -> None:
    await _hold(database, HoldReason.no_credits)
    async with services_of(database.url) as killed:
        claimed = await periodic_loop(killed).claim(2)

    recheck = next(job for job in claimed.items if job.name == RECHECK)
    assert recheck.due_at is not None
    assert recheck.due_at < datetime.now(UTC) + timedelta(minutes=1)


async def test_nothing_is_held_before_anything_was(database: Database) -> None:
    async with database.writes.begin() as session:
        await release_submits(session)

    assert await _current(database) is None


async def test_refused_key_holds_only_the_replicas_that_have_it(database_url: str) -> None:
    async with (
        serve_sandbox() as upstream_url,
        serve(database_url, upstream_url=upstream_url, upstream_api_key="stale", hold_recheck=600) as stale,
        serve(database_url, upstream_url=upstream_url, hold_recheck=600) as good,
    ):
        await stale.client.get("/v1/credits")
        await stale.create_task()
        at_stale = (await submit_loop(stale.services).claim(1)).items
        at_good = (await submit_loop(good.services).claim(1)).items
        ready = [(await each.client.get("/readyz")).json()["checks"]["queue"] for each in (stale, good)]
        checked = await UpstreamChecks(good.services).key()

    keys = [each.services.settings.upstream_fingerprint for each in (stale, good)]
    host = upstream_url.removeprefix("http://")
    assert (len(at_stale), len(at_good)) == (0, 1)
    assert [each["status"] for each in ready] == ["degraded", "ok"]
    assert (
        "refuses our key; set SOUNDPOST_UPSTREAM_API_KEY to one that works, and restart or, if it is in a file, send"
        f" SIGHUP (key {keys[0]} at {host})" in (ready[0]["detail"])
    )
    assert f"submits are not held; those of processes with another key ({keys[0]}) are" in ready[1]["detail"]
    assert (checked.status, f"(key {keys[1]} at {host})" in checked.detail) == ("ok", True)


async def test_failure_of_another_key_is_told_with_it_and_is_not_ours(database_url: str) -> None:
    async with (
        serve_sandbox() as upstream_url,
        serve(database_url, upstream_url=upstream_url, upstream_api_key="stale") as stale,
        serve(database_url, upstream_url=upstream_url) as good,
    ):
        await stale.create_task()
        loop = submit_loop(stale.services)
        [submit] = (await loop.claim(1)).items
        await loop.work(submit)
        at_stale, at_good = [(await each.client.get("/readyz")).json()["checks"]["submits"] for each in (stale, good)]

    assert (at_stale["status"], at_good["status"]) == ("degraded", "ok")
    assert "with the key" not in at_stale["detail"]
    assert at_good["detail"].endswith(f" with the key {stale.services.settings.upstream_fingerprint}")


async def test_hold_of_a_key_is_rechecked_by_its_replicas_alone_and_ends_with_them(database_url: str) -> None:
    async with (
        serve_sandbox() as upstream_url,
        services_of(database_url, upstream_url=upstream_url, upstream_api_key="stale") as stale,
        services_of(database_url, upstream_url=upstream_url) as good,
    ):
        async with stale.database.transaction() as (session, now):
            await stale.gateway.pacer.prepare(session, now)
            hold = Hold(HoldReason.bad_key, now - timedelta(hours=2), None, stale.gateway.key)
            await hold_submits(session, hold, RECHECK_IN)
        by_good, by_stale = [await periodic_loop(each).claim(3) for each in (good, stale)]
        [job] = by_stale.items
        await periodic_loop(stale).work(job)
        async with good.database.transaction() as (session, now):
            rechecked = await current_hold(session, stale.gateway.key)
            await forget_stale_holds(session, now + timedelta(hours=1))
            forgotten = await current_hold(session, stale.gateway.key)

    assert by_good.items == []
    assert rechecked == replace(hold, message="Unauthorized access")
    assert forgotten is None


async def test_hold_for_want_of_credits_is_everybodys(database: Database) -> None:
    async with database.writes.begin() as session:
        await hold_submits(session, Hold(HoldReason.no_credits, MORNING, None, "0123abcd"), RECHECK_IN)

    async with database.reads() as session:
        assert await current_hold(session, "another") is not None


async def test_held_queue_degrades_readiness_and_gives_advice(service: Service) -> None:
    await service.add_task()
    since = datetime.now(UTC)
    await _hold(service.database, HoldReason.no_credits, later=since - MORNING)

    answer = await service.client.get("/readyz")

    checks = answer.json()["checks"]
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert checks["queue"]["detail"] == (
        f"submits are held since {since.isoformat(timespec='seconds')}: the upstream account has no credits; buy some, "
        "submits go on by themselves"
    )
    # What waits because it is held is not overdue.
    assert checks["overdue"]["status"] == "ok"


async def test_request_that_can_never_be_sent_holds_the_queue_and_says_so(database_url: str) -> None:
    async with (
        receiving() as upstream_host,
        serve(database_url, runs_workers=True, hold_recheck="600", upstream_url=upstream_host.url) as service,
    ):
        # Settings refuse such a key; it stands for whatever they do not see.
        service.services.upstream_http.headers["Authorization"] = "Bearer a\nb"
        task_id = await service.create_task()

        async def queue() -> dict[str, str]:
            checks = (await service.client.get("/readyz")).json()["checks"]
            return cast("dict[str, str]", checks["queue"])

        async def is_held() -> bool:
            return (await queue())["status"] == "degraded"

        await eventually(is_held)
        detail, task = (await queue())["detail"], await service.task(task_id)
        usage = (await service.client.get("/v1/usage")).json()
        upstream = await UpstreamChecks(service.services).key()

    assert upstream_host.requests == []
    assert "no request to the upstream can be sent" in detail
    assert "SOUNDPOST_UPSTREAM_URL" in detail
    assert (task["status"], task["charge"], task["queue_position"]) == ("queued", "none", 1)
    assert usage["posts"] == 0
    assert upstream.status == "degraded"
    assert (upstream.detail or "").startswith(EXPLANATIONS[HoldReason.unsendable])


@pytest.mark.parametrize("reason", [HoldReason.blocked, HoldReason.no_credits, HoldReason.bad_key])
async def test_hold_at_an_upstream_without_credits_ends_by_one_order(database_url: str, reason: HoldReason) -> None:
    answer = Reply(404, body=b"<html>no such page</html>")
    accepted = Reply(200, body=b'{"code": 200, "msg": "success", "data": {"taskId": "up-1"}}')
    async with receiving() as mirror, services_of(database_url, upstream_url=mirror.url) as services:
        mirror.respond = lambda request: answer if request.path.endswith("/credit") else accepted
        key = await add_key(services.database)
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            hold = Hold(reason, now, "Refused.", services.gateway.key)
            await hold_submits(session, hold, timedelta())
        for _ in range(3):
            await add_task(services.database, key)
        submits, periodic = submit_loop(services), periodic_loop(services)
        for _ in range(MAX_UNCLEAR_LOOKS):
            assert not (await submits.claim(20)).items
            async with services.database.writes.begin() as session:
                await session.execute(update(PeriodicJob).where(PeriodicJob.name == hold.job).values(due_at=MORNING))
            [job] = (await periodic.claim(2)).items
            await periodic.work(job)

        [probe] = (await submits.claim(20)).items
        nobody = (await submits.claim(20)).items
        await submits.work(probe)

        assert not nobody
        assert await _current(services.database) is None
        assert len((await submits.claim(20)).items) == 2


@pytest.mark.parametrize("is_other_accepted", [True, False])
async def test_task_that_alone_is_blocked_fails_in_the_end(database_url: str, is_other_accepted: bool) -> None:
    accepted = Reply(200, body=b'{"code": 200, "msg": "success", "data": {"taskId": "up-1"}}')
    async with receiving() as firewall, services_of(database_url, upstream_url=firewall.url) as services:
        firewall.respond = lambda request: Reply(403) if b"forbidden" in request.body else accepted
        key = await add_key(services.database)
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
        if is_other_accepted:
            await add_task(services.database, key)
        blocked = await add_task(services.database, key, prompt="forbidden words", attempts=MAX_BLOCKED - 1)
        submits = submit_loop(services)
        for submit in sorted((await submits.claim(20)).items, key=lambda submit: submit.task.id == blocked.id):
            await submits.work(submit)

        after, hold = await reread(services.database, blocked.id), await _current(services.database)

    assert after.charge is Charge.none
    if is_other_accepted:
        assert (after.status, after.error_code, hold) == (TaskStatus.failed, ErrorCode.upstream_failed, None)
    else:
        assert (after.status, hold and hold.reason) == (TaskStatus.queued, HoldReason.blocked)


async def _hold(database: Database, reason: HoldReason, later: timedelta = timedelta()) -> None:
    async with database.writes.begin() as session:
        await hold_submits(session, Hold(reason, MORNING + later, "No credits."), RECHECK_IN)


async def _current(database: Database) -> Hold | None:
    async with database.reads() as session:
        return await current_hold(session)
