"""Queries on clips that are still to be archived, and on their files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, select
from sqlalchemy.orm import aliased

from app.database.base import UtcDateTime
from app.database.claims import DatabaseNow
from app.database.engine import Session
from app.models import Clip


async def due_lanes(session: Session, now: datetime) -> Sequence[str]:
    """The lanes that have a due clip, by a loose index scan: a lane costs the same with one clip or a thousand."""
    return (await session.scalars(_DUE_LANES, {"now": now})).all()


def has_due_lane() -> ColumnElement[bool]:
    """Whether any lane has a due clip, as an expression of SQL."""
    return _due_lanes(DatabaseNow()).exists()


def _due_lanes(now: ColumnElement[datetime]) -> Select[str]:
    lanes = select(func.min(Clip.lane).label("lane")).where(Clip.due_at.isnot(None)).cte("lanes", recursive=True)
    waiting = aliased(Clip)
    following = select(func.min(waiting.lane)).where(waiting.due_at.isnot(None), waiting.lane > lanes.c.lane)
    lanes = lanes.union_all(select(following.scalar_subquery()).where(lanes.c.lane.isnot(None)))
    is_due = exists().where(Clip.lane == lanes.c.lane, Clip.due_at <= now)
    return select(lanes.c.lane).where(is_due)


_DUE_LANES = _due_lanes(bindparam("now", type_=UtcDateTime()))


async def idle_lanes(session: Session, now: datetime, late: datetime) -> set[str]:
    """The lanes with a clip that was due before `late`, without those of which one is claimed: there, it waits."""
    lanes = await due_lanes(session, late)
    is_claimed = Clip.lane.in_(lanes), Clip.due_at > now, Clip.fence.isnot(None)
    return set(lanes) - set(await session.scalars(select(Clip.lane).where(*is_claimed).distinct()))


async def is_stored_file(session: Session, key: str) -> bool:
    """Whether a clip refers to the audio with this storage key."""
    return await session.scalar(select(exists().where(Clip.storage_key == key))) or False
