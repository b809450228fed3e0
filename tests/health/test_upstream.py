"""Doctor's one look at the upstream tells the key, the credits and the clock apart."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import pytest

from app.health.checks import Limits, all_checks, run_checks
from app.health.results import Check, Skipped
from app.upstream.credits import note_credits
from tests.support.clock import MORNING, Clock
from tests.support.receivers import Reply, hang, receiving
from tests.support.service import Service, services_of

SINCE = "2026-03-01T08:00:00+00:00"
NAMES = ("upstream", "credits", "clock")
PLENTY = Limits(timedelta(seconds=20), timedelta(seconds=30))
CLOCK_ADVICE = "let NTP set it (chrony, systemd-timesyncd); from 300 on, signatures and links with a time are refused"


def credits_reply(amount: float, by: timedelta = timedelta(), *headers: str) -> Reply:
    """The upstream's answer, whose clock is ahead of ours `by` so much."""
    date = format_datetime(datetime.now(UTC) + by, usegmt=True)
    body = json.dumps({"code": 200, "msg": "success", "data": amount}).encode()
    return Reply(200, ("Content-Type: application/json", f"Date: {date}", *headers), body)


async def found_with(
    database_url: str, reply: Reply, clock: Clock | None = None, limits: Limits = PLENTY, **settings: Any
) -> dict[str, Check | Skipped]:
    """What these checks find with an upstream that answers like this."""
    async with (
        receiving(reply) as upstream,
        services_of(database_url, clock, upstream_url=upstream.url, **settings) as services,
    ):
        checks = all_checks(services)
        return {name: found async for name, found in run_checks({each: checks[each] for each in NAMES}, str, limits)}


def told(found: Check | Skipped) -> tuple[str, str]:
    return ("skipped", str(found)) if isinstance(found, Skipped) else (found.status, found.detail)


async def test_upstream_that_is_well_is_asked_once(database_url: str) -> None:
    async with receiving(credits_reply(250)) as upstream:
        async with services_of(database_url, upstream_url=upstream.url) as services:
            checks = all_checks(services)
            found = [told(found) async for _, found in run_checks({each: checks[each] for each in NAMES}, str, PLENTY)]
            key = services.settings.upstream_fingerprint
        requests = len(upstream.requests)

    assert requests == 1
    assert found == [
        ("ok", f"the key works now; 250.0 credits are left (key {key} at 127.0.0.1:{upstream.port})"),
        ("ok", "250.0 credits are left, for some 100 tasks at 2.5 each"),
        ("ok", "within 30 seconds of the database's and the upstream's"),
    ]


async def test_credits_that_soon_end_are_found(database_url: str) -> None:
    found = await found_with(database_url, credits_reply(20.5))

    assert told(found["credits"]) == (
        "degraded",
        "20.5 credits are left, for some 8 tasks at 2.5 each: buy more before submits are held for want of them",
    )


async def test_credits_last_for_tasks_of_the_dearest_model(database_url: str) -> None:
    prices: dict[str, Any] = {"models": "V5,V6", "credit_price": "V6=4,V5=2.5"}

    found = await found_with(database_url, credits_reply(200), **prices)
    free = await found_with(database_url, credits_reply(200), credit_price="0")

    assert told(found["credits"])[1].startswith("200.0 credits are left, for some 50 tasks at up to 4 each: ")
    assert told(free["credits"]) == ("ok", "200.0 credits are left, and tasks cost none")


@pytest.mark.parametrize(
    ("left", "charged", "status", "words"),
    [
        ("97.5", 2500, "ok", f"the upstream's balance has moved as the ledgers say since {SINCE}"),
        ("75", 0, "ok", f"25 credits have left the upstream's account since {SINCE} that no ledger has: they may be"),
        (
            "74.5",
            0,
            "degraded",
            f"25.5 credits have left the upstream's account since {SINCE} that no ledger has: some",
        ),
        ("1100", 0, "ok", f"1000 credits came in since {SINCE} that no ledger has: bought, or given back"),
    ],
)
async def test_drift_of_the_balance_is_told(service: Service, left: str, charged: int, status: str, words: str) -> None:
    before = (await service.client.get("/readyz")).json()["checks"]["drift"]
    async with service.database.transaction() as (session, _):
        await note_credits(session, Decimal(100), 0, MORNING)
        await note_credits(session, Decimal(left), charged, MORNING + timedelta(minutes=5))

    checks = all_checks(service.services)
    found = [each async for _, each in run_checks({"drift": checks["drift"]}, str, PLENTY)]

    assert before == {"status": "ok", "detail": "the upstream has not told its balance yet"}
    assert [told(each)[0] for each in found] == [status]
    assert told(found[0])[1].startswith(words)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401, (), b'{"code":401,"msg":"no"}'), "the upstream refuses our key; set SOUNDPOST_UPSTREAM_API_KEY"),
        (Reply(403, ("Content-Type: text/html",), b"<html>no</html>"), "a block page; check SOUNDPOST_UPSTREAM_URL"),
        (Reply(200, ("Content-Type: text/html",), b"<html>hello</html>"), "check SOUNDPOST_UPSTREAM_URL"),
        (Reply(404, (), b""), "its answer is not usable: check SOUNDPOST_UPSTREAM_URL"),
        (Reply(200, (), b'{"code":200,"msg":"success","data":0}'), "the upstream account has no credits; buy some"),
    ],
)
async def test_broken_upstream_is_one_finding(database_url: str, reply: Reply, words: str) -> None:
    found = {name: told(each) for name, each in (await found_with(database_url, reply)).items()}

    assert found["upstream"][0] == "degraded"
    assert words in found["upstream"][1]
    assert found["credits"] == ("skipped", "not checked, because of `upstream`")
    assert found["clock"][0] == "ok"


@pytest.mark.parametrize(("by", "where"), [(-90, "ahead of"), (90, "behind")])
async def test_clock_that_differs_from_the_upstreams_is_found(database_url: str, by: int, where: str) -> None:
    found = await found_with(database_url, credits_reply(1000, timedelta(seconds=by)))

    status, detail = told(found["clock"])
    assert status == "degraded"
    assert detail in {
        f"the clock of this machine is {seconds} seconds {where} the upstream's: {CLOCK_ADVICE}"
        for seconds in range(85, 96)
    }


async def test_clock_that_differs_from_the_databases_is_found(database_url: str) -> None:
    clock = Clock(datetime.now(UTC) - timedelta(hours=1))
    found = await found_with(database_url, credits_reply(1000), clock)

    status, detail = told(found["clock"])
    assert (status, detail.startswith("the clock of this machine is 36")) == ("degraded", True)
    assert detail.endswith(f" seconds ahead of the database's: {CLOCK_ADVICE}")


@pytest.mark.parametrize("reply", [credits_reply(1000, timedelta(hours=-1), "Age: 3600"), Reply(200, ("Date: now",))])
async def test_date_of_a_cache_or_of_no_meaning_is_not_compared(database_url: str, reply: Reply) -> None:
    found = await found_with(database_url, reply)

    assert told(found["clock"]) == ("ok", "within 30 seconds of the database's")


async def test_what_never_answers_takes_its_time_alone_and_all_checks_end(database_url: str) -> None:
    limits = Limits(each=timedelta(seconds=0.3), total=timedelta(seconds=0.4))
    async with (
        receiving(hang) as silent,
        services_of(database_url, upstream_url=silent.url, public_url=silent.url) as services,
    ):
        checks = all_checks(services)
        names = ("upstream", "public_url", "base_url")
        found = [each async for each in run_checks({name: checks[name] for name in names}, str, limits)]

    assert told(found[0][1]) == (
        "degraded",
        "no answer within 0.3 seconds: check SOUNDPOST_UPSTREAM_URL and the network of this machine",
    )
    assert told(found[1][1])[1].endswith(": check SOUNDPOST_PUBLIC_URL and the network of this machine")
    assert told(found[-1][1]) == ("skipped", "not checked, because the checks before it took 0.4 s")
