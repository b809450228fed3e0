"""What callers' tasks may have cost, summed over a time."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import func, select

from app.auth.api_keys import CallerDep
from app.database.engine import ReaderDep, Session
from app.enums import Charge
from app.models import SpentCharge, Task
from app.web import Moment

router = APIRouter(tags=["account"])


class Usage(BaseModel):
    """Tasks created, POSTs made for them, and how many of the tasks were charged, refunded, or possibly charged."""

    tasks: int
    posts: int
    charged: int
    refunded: int
    possible: int


@router.get("/v1/usage", operation_id="getUsage")
async def get_usage(
    session: ReaderDep,
    caller: CallerDep,
    since: Annotated[Moment | SkipJsonSchema[None], Query()] = None,
    until: Annotated[Moment | SkipJsonSchema[None], Query()] = None,
) -> Usage:
    """The money side of this key's tasks that were created in a time range: `since` included, `until` not."""
    return await sum_usage(session, caller.api_key_id, since, until)


async def sum_usage(session: Session, api_key_id: str, since: datetime | None, until: datetime | None) -> Usage:
    """Add up one key's tasks, erased ones too; each counts once, under the charge that it has now, or had last."""
    counts: Counter[Charge] = Counter()
    posts = 0
    for kind in (Task, SpentCharge):
        by_charge = select(kind.charge, func.count(), func.sum(kind.posts)).where(kind.api_key_id == api_key_id)
        if since is not None:
            by_charge = by_charge.where(kind.created_at >= since)
        if until is not None:
            by_charge = by_charge.where(kind.created_at < until)
        for charge, tasks, made in await session.execute(by_charge.group_by(kind.charge)):
            counts[charge] += tasks
            posts += made
    return Usage(
        tasks=counts.total(),
        posts=posts,
        charged=counts[Charge.charged],
        refunded=counts[Charge.refunded],
        possible=counts[Charge.possible],
    )
