"""The rate limit of each key, a sliding window counted in the database for all replicas."""

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
    """What is left of a key's rate, and the time until more of it is available."""

    rate: Rate
    left: int
    more_in: timedelta

    @property
    def headers(self) -> Mapping[str, str]:
        """The RateLimit-Policy and RateLimit fields (draft-ietf-httpapi-ratelimit-headers)."""
        return {
            "RateLimit-Policy": f'"default";q={self.rate.requests};w={_seconds(self.rate.period)}',
            "RateLimit": f'"default";r={self.left};t={_seconds(self.more_in)}',
        }


async def spend(
    session: Session, api_key_id: str, rate: Rate | None, now: datetime, *, is_free: bool = False
) -> Mapping[str, str]:
    """Count one new task, unless it is free, and return the rate limit headers. Raises TooManyRequests."""
    if rate is None:
        return {}
    count = read_quota if is_free else _count
    return (await count(session, api_key_id, rate, now)).headers


async def read_quota(session: Session, api_key_id: str, rate: Rate, now: datetime) -> Quota:
    """What is left of this key's rate."""
    window = RateLimitHit.api_key_id == api_key_id, RateLimitHit.made_at > now - rate.period
    counted = select(func.count(), func.min(RateLimitHit.made_at)).where(*window)
    count, oldest = (await session.execute(counted)).one()
    return Quota(rate, max(0, rate.requests - count), (oldest or now) + rate.period - now)


async def _count(session: Session, api_key_id: str, rate: Rate, now: datetime) -> Quota:
    """
    Count one new task of this key, if this transaction is committed. Raises TooManyRequests.

    Locks the row of the key first: otherwise concurrent transactions would not see
    each other's hits.
    """
    await session.get(ApiKey, api_key_id, with_for_update={"key_share": True})
    own = RateLimitHit.api_key_id == api_key_id
    await session.execute(delete(RateLimitHit).where(own, RateLimitHit.made_at <= now - rate.period))
    quota = await read_quota(session, api_key_id, rate, now)
    if quota.left == 0:
        wait = {"Retry-After": str(_seconds(quota.more_in))}
        raise TooManyRequests(headers={**quota.headers, **wait})
    session.add(RateLimitHit(api_key_id=api_key_id, made_at=now))
    return Quota(rate, quota.left - 1, quota.more_in)


def _seconds(span: timedelta) -> int:
    """Whole seconds, rounded up, at least one."""
    return max(1, ceil(span.total_seconds()))
