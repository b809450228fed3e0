"""How many sounds one key may order in any window of time, counted in the database for all replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from sqlalchemy import delete, func, select

from app.config import Rate
from app.database.engine import Session
from app.errors import TooManyRequests
from app.models import ApiKey, RateLimitHit


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a key's rate, and when more of it comes back."""

    rate: Rate
    left: int
    more_in: timedelta

    @property
    def headers(self) -> Mapping[str, str]:
        """The two fields of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"default";q={self.rate.requests};w={_seconds(self.rate.period)}',
            "RateLimit": f'"default";r={self.left};t={_seconds(self.more_in)}',
        }


async def spend(
    session: Session, api_key_id: str, rate: Rate | None, now: datetime, *, is_free: bool = False
) -> Mapping[str, str]:
    """Count one submit, unless it is free, and return the headers that say what is left. Raises TooManyRequests."""
    if rate is None:
        return {}
    tell = read_quota if is_free else _count
    return (await tell(session, api_key_id, rate, now)).headers


async def read_quota(session: Session, api_key_id: str, rate: Rate, now: datetime) -> Quota:
    """What is left of this key's rate."""
    window = RateLimitHit.api_key_id == api_key_id, RateLimitHit.made_at > now - rate.period
    counted = select(func.count(), func.min(RateLimitHit.made_at)).where(*window)
    count, oldest = (await session.execute(counted)).one()
    return Quota(rate, max(0, rate.requests - count), (oldest or now) + rate.period - now)


async def _count(session: Session, api_key_id: str, rate: Rate, now: datetime) -> Quota:
    """
    Count one submit of this key. Raises TooManyRequests.

    It counts only if this transaction is committed. The key's row is locked first:
    replicas that admit at once would not see each other's submits.
    """
    await session.get(ApiKey, api_key_id, with_for_update={"key_share": True})
    ours = RateLimitHit.api_key_id == api_key_id
    await session.execute(delete(RateLimitHit).where(ours, RateLimitHit.made_at <= now - rate.period))
    quota = await read_quota(session, api_key_id, rate, now)
    if quota.left == 0:
        wait = {"Retry-After": str(_seconds(quota.more_in))}
        raise TooManyRequests(headers={**quota.headers, **wait})
    session.add(RateLimitHit(api_key_id=api_key_id, made_at=now))
    return Quota(rate, quota.left - 1, quota.more_in)


def _seconds(span: timedelta) -> int:
    """Whole seconds, at least one; who waits that long has waited long enough."""
    return max(1, ceil(span.total_seconds()))
