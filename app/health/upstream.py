"""Whether the upstream takes our key and has credits for us, and whether clocks agree: by one look at the credits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime

import httpx

from app.config import Settings
from app.database.engine import Database
from app.health.results import Check, Skipped
from app.services import Services
from app.upstream.credits import known_credits
from app.upstream.gateway import MAINTENANCE
from app.upstream.hold import EXPLANATIONS, NO_KEY, account_name, current_hold
from app.upstream.pacing import full_share
from app.upstream.types import HoldReason, Outcome, Result

# For how many tasks the credits should last, and what of how many may leave the account without a charge of ours.
ENOUGH_TASKS, MAX_DRIFT_TASKS = 100, 10
# Half a second of it is the resolution of `Date`. Signatures with a time are refused from five minutes on.
MAX_SKEW = timedelta(seconds=30)


class UpstreamChecks:
    """The checks that share one call of the upstream; `key` makes it, and comes first. None holds submits."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._credits: Decimal | None = None
        self._ahead_of_upstream: timedelta | None = None

    async def key(self) -> Check:
        """Whether the upstream accepts our key and the account has credits."""
        services = self._services
        if not services.gateway.key:
            return Check(status="down", detail=f"{NO_KEY}: set it to the upstream's key")
        # The database may be new: the pacer's rows are otherwise created when a service starts.
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
        result = await self._look()
        if result is None:
            return Check(status="degraded", detail="no request was free within its rate; check again in some seconds")
        name = account_name(services.settings)
        if problem := _problem_of(result, name):
            return Check(status="degraded", detail=problem)
        self._credits = result.value
        async with services.database.reads() as session:
            is_held = await current_hold(session, services.gateway.key)
        soon = "; the hold of submits ends at its next look" * bool(is_held)
        return Check(status="ok", detail=f"the key works now; {result.value} credits are left ({name}){soon}")

    async def credits(self) -> Check:
        """Whether the credits last for a while."""
        if self._credits is None:
            raise Skipped("not checked, because of `upstream`")
        price, each = _highest_price(self._services.settings)
        if not price:
            return Check(status="ok", detail=f"{self._credits} credits are left, and tasks cost none")
        tasks = int(self._credits / price)
        told = f"{self._credits} credits are left, for some {tasks} tasks at {each} each"
        if tasks >= ENOUGH_TASKS:
            return Check(status="ok", detail=told)
        return Check(status="degraded", detail=f"{told}: buy more before submits are held for want of them")

    async def clock(self) -> Check:
        """Whether this machine agrees with the database and the upstream on the time."""
        database = self._services.database
        async with database.reads() as session:
            before = datetime.now(UTC)
            now = await database.now(session)
            after = datetime.now(UTC)
        ahead = {"database": before + (after - before) / 2 - now, "upstream": self._ahead_of_upstream}
        known = {name: by for name, by in ahead.items() if by is not None}
        if found := list(find_skews(known)):
            return Check(status="degraded", detail="; ".join(found))
        told = " and ".join(f"the {name}'s" for name in known)
        return Check(status="ok", detail=f"within {MAX_SKEW.total_seconds():g} seconds of {told}")

    async def _look(self) -> Result[Decimal] | None:
        http, gateway = self._services.upstream_http, self._services.gateway
        http.event_hooks["response"].append(self._note_date)
        try:
            return await gateway.call(lambda upstream: upstream.credits(), full_share, may_hold=False)
        finally:
            http.event_hooks["response"].remove(self._note_date)

    async def _note_date(self, response: httpx.Response) -> None:
        try:
            date = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return
        # A cache tells when it stored the answer.
        if date.tzinfo and "age" not in response.headers:
            self._ahead_of_upstream = datetime.now(UTC) - date


async def check_drift(database: Database, settings: Settings) -> Check:
    """Whether the upstream's balance has moved as the ledgers say. Degraded where more has left it for long."""
    async with database.reads() as session:
        known = await known_credits(session)
    if known is None:
        return Check(status="ok", detail="the upstream has not told its balance yet")
    since = f"since {known.since.isoformat(timespec='seconds')}"
    if not known.drift:
        return Check(status="ok", detail=f"the upstream's balance has moved as the ledgers say {since}")
    if known.drift < 0:
        detail = f"{-known.drift} credits came in {since} that no ledger has: bought, or given back"
        return Check(status="ok", detail=detail)
    price, _ = _highest_price(settings)
    told = f"{known.drift} credits have left the upstream's account {since} that no ledger has"
    if known.drift <= MAX_DRIFT_TASKS * price:
        return Check(status="ok", detail=f"{told}: they may be of tasks that are on their way")
    advice = "somebody else uses the account, or SOUNDPOST_CREDIT_PRICE is not what a task costs"
    return Check(status="degraded", detail=f"{told}: {advice}")


def _highest_price(settings: Settings) -> tuple[Decimal, str]:
    """What a task may cost, in credits, and how to say so."""
    prices = {Decimal(settings.price_of(model)) / 1000 for model in settings.models}
    return max(prices), f"{'up to ' * (len(prices) > 1)}{max(prices).normalize():f}"


def find_skews(ahead: dict[str, timedelta]) -> Iterator[str]:
    """Whose clock this machine's is too far from, in sentences that say what to do."""
    for name, by in ahead.items():
        if abs(by) > MAX_SKEW:
            where = "ahead of" if by > timedelta() else "behind"
            yield (
                f"the clock of this machine is {abs(by).total_seconds():.0f} seconds {where} the {name}'s: let NTP set"
                " it (chrony, systemd-timesyncd); from 300 on, signatures and links with a time are refused"
            )


def _problem_of(result: Result[Decimal], name: str) -> str | None:
    """What is wrong with the upstream or our account, and what to do about it."""
    if result.hold_reason:
        return f"{EXPLANATIONS[result.hold_reason]} ({name})"
    if result.outcome is Outcome.throttled:
        case = "is under maintenance" if result.code == MAINTENANCE else "takes no requests for now"
        return f"the upstream {case} ({result.code}: {result.message}); tasks wait, and go on by themselves"
    if result.value is None:
        case = "its answer is not usable" if result.code else "it does not answer"
        return f"{case}: check SOUNDPOST_UPSTREAM_URL ({result.message or 'no message'}; {name})"
    return EXPLANATIONS[HoldReason.no_credits] if result.value <= 0 else None
