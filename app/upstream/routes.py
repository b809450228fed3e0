"""What callers may ask about the upstream's account."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel

from app.auth.api_keys import CallerDep
from app.config import Settings
from app.errors import UpstreamUnavailable
from app.upstream.credits import CreditsCache, CreditsUnavailable
from app.upstream.hold import Hold, hold_submits
from app.web.problems import problem_responses
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(tags=["account"])
CreditsDep = Annotated[CreditsCache, provided(CreditsCache)]
SettingsDep = Annotated[Settings, provided(Settings)]


class CreditsRead(BaseModel):
    """What is left on the account that all callers share."""

    credits: float
    checked_at: datetime


@router.get("/v1/credits", operation_id="getCredits", responses=problem_responses(UpstreamUnavailable))
async def get_credits(
    credits_cache: CreditsDep, database: DatabaseDep, settings: SettingsDep, caller: CallerDep
) -> CreditsRead:
    """How many credits are left upstream; at most 10 seconds old."""
    try:
        found = await credits_cache.credits()
    except CreditsUnavailable as error:
        said = error.answer
        if said is not None and said.hold_reason is not None:
            # No submit would fare better: the queue need not find out by one.
            async with database.transaction() as (session, now):
                hold = Hold(said.hold_reason, now, said.message)
                await hold_submits(session, hold, settings.hold_recheck)
        raise UpstreamUnavailable(
            detail="The upstream did not say how many credits are left; ask again in a few seconds.",
            upstream_code=said.code if said else None,
            upstream_message=said.message if said else None,
        ) from None
    return CreditsRead(credits=float(found.credits), checked_at=found.checked_at)
