"""REST on the upstream's account."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.auth.callers import ReadCaller
from app.errors import UpstreamUnavailable
from app.upstream.credits import CreditsCache
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router

router = Router(tags=["account"])
CreditsDep = Annotated[CreditsCache, provided(CreditsCache)]


class CreditsRead(BaseModel):
    """The credits left on the upstream account, which all callers share."""

    credits: float = Field(description="The credits left, with fractions.", examples=[1025.6])
    checked_at: datetime = Field(
        description="When the upstream reported this, at most 10 seconds ago.", examples=["2026-01-31T08:00:00Z"]
    )


@router.get(
    "/v1/credits",
    operation_id="getCredits",
    summary="Get the remaining credits",
    responses=problem_responses(UpstreamUnavailable),
)
async def get_credits(cache: CreditsDep, caller: ReadCaller) -> CreditsRead:
    """Get the credits left on the upstream account, as of at most 10 seconds ago."""
    found = await cache.credits()
    return CreditsRead(credits=float(found.credits), checked_at=found.checked_at)
