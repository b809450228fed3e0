"""Whether the upstream takes our key and has credits for us, by one look at them."""

from __future__ import annotations

from app.health.results import Check
from app.services import Services
from app.upstream.gateway import MAINTENANCE
from app.upstream.hold import EXPLANATIONS, NO_KEY, account_name, current_hold
from app.upstream.pacing import full_share
from app.upstream.types import HoldReason, Outcome


async def check_upstream(services: Services) -> Check:
    """Whether the upstream accepts our key and the account has credits. A failure does not hold submits."""
    if not services.gateway.key:
        return Check(status="down", detail=f"{NO_KEY}: set it to the upstream's key")
    # The database may be new: the pacer's rows are otherwise created when a service starts.
    async with services.database.transaction() as (session, now):
        await services.gateway.pacer.prepare(session, now)
    result = await services.gateway.call(lambda upstream: upstream.credits(), full_share, may_hold=False)
    if result is None:
        return Check(status="degraded", detail="no request was free within its rate; check again in some seconds")
    name = account_name(services.settings)
    if reason := result.hold_reason:
        return Check(status="degraded", detail=f"{EXPLANATIONS[reason]} ({name})")
    if result.outcome is Outcome.throttled:
        case = "is under maintenance" if result.code == MAINTENANCE else "takes no requests for now"
        detail = f"the upstream {case} ({result.code}: {result.message}); tasks wait, and go on by themselves"
        return Check(status="degraded", detail=detail)
    if result.value is None:
        case = "its answer is not usable" if result.code else "it does not answer"
        detail = f"{case}: check SOUNDPOST_UPSTREAM_URL ({result.message or 'no message'}; {name})"
        return Check(status="degraded", detail=detail)
    if result.value <= 0:
        return Check(status="degraded", detail=EXPLANATIONS[HoldReason.no_credits])
    async with services.database.reads() as session:
        is_held = await current_hold(session, services.gateway.key)
    soon = "; the hold of submits ends at its next look" * bool(is_held)
    return Check(status="ok", detail=f"the key works now; {result.value} credits are left ({name}){soon}")
