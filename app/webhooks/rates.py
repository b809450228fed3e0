"""The rate of an endpoint: at most so many attempts in any window, over all processes and restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from app.config import Rate, parse_rate
from app.database.engine import Session
from app.models import Delivery, EndpointSend, WebhookEndpoint
from app.webhooks.repository import IS_KEPT

# How soon to look again at an endpoint that another transaction has locked.
LOCKED_WAIT = timedelta(milliseconds=50)


@dataclass(slots=True)
class Window:
    """An endpoint with a rate, locked, and how many attempts that lets through now."""

    endpoint: WebhookEndpoint
    rate: Rate
    room: int

    @property
    def mine(self) -> ColumnElement[bool]:
        """Which attempts are of this endpoint."""
        return EndpointSend.endpoint_id == self.endpoint.id

    async def note_whether_full(self, session: Session, now: datetime) -> None:
        """Note until when the rate lets no attempt through."""
        latest = select(EndpointSend.ended_at).where(self.mine, EndpointSend.ended_at > now - self.rate.period)
        last = latest.order_by(EndpointSend.ended_at.desc()).offset(self.rate.requests - 1).limit(1)
        ended_at = await session.scalar(last)
        self.endpoint.full_until = None if ended_at is None else ended_at + self.rate.period


async def lock_windows(session: Session, endpoint_ids: Collection[str], now: datetime) -> Mapping[str, Window]:
    """
    Lock those of these endpoints that have a rate and that no other transaction has locked; return their windows.

    An attempt counts from its claim until a whole period after its response, so that its arrival, whenever it was in
    between, shares no window with one that its end makes room for. What counts no more is deleted.
    """
    rated = WebhookEndpoint.id.in_(endpoint_ids), WebhookEndpoint.rate.isnot(None), IS_KEPT
    free = select(WebhookEndpoint).where(*rated).order_by(WebhookEndpoint.id)
    locked = free.with_for_update(key_share=True, skip_locked=True).execution_options(populate_existing=True)
    windows = {}
    for endpoint in await session.scalars(locked):
        rate = parse_rate(endpoint.rate)
        windows[endpoint.id] = Window(endpoint, rate, rate.requests)
    if not windows:
        return {}
    over = [and_(each.mine, EndpointSend.ended_at <= now - each.rate.period) for each in windows.values()]
    await session.execute(delete(EndpointSend).where(or_(*over)).execution_options(synchronize_session=False))
    counted = select(EndpointSend.endpoint_id, func.count()).where(EndpointSend.endpoint_id.in_(windows))
    for endpoint_id, count in await session.execute(counted.group_by(EndpointSend.endpoint_id)):
        windows[endpoint_id].room = max(0, windows[endpoint_id].rate.requests - count)
        if not windows[endpoint_id].room:
            await windows[endpoint_id].note_whether_full(session, now)
    return windows


async def count_claimed(
    session: Session, windows: Mapping[str, Window], claimed: Sequence[Delivery], now: datetime
) -> None:
    """Count deliveries that were claimed now in the windows of their endpoints, until their claims lapse."""
    counted = [each for each in claimed if each.endpoint_id in windows]
    if not counted:
        return
    sends = [
        {"delivery_id": each.id, "fence": each.fence, "endpoint_id": each.endpoint_id, "ended_at": each.due_at}
        for each in counted
    ]
    await session.execute(insert(EndpointSend), sends)
    for endpoint_id, count in Counter(str(each.endpoint_id) for each in counted).items():
        window = windows[endpoint_id]
        window.room -= count
        if not window.room:
            await window.note_whether_full(session, now)


async def count_ended(
    session: Session, endpoint: WebhookEndpoint, ended: Sequence[tuple[Delivery, datetime]], now: datetime
) -> None:
    """Count the attempts at claimed deliveries of a locked endpoint as over: since now, or since these later times."""
    if endpoint.rate is None or not ended:
        return
    for delivery, at in ended:
        mine = EndpointSend.delivery_id == delivery.id, EndpointSend.fence == delivery.fence
        over = update(EndpointSend).where(*mine).values(ended_at=max(now, at))
        await session.execute(over.execution_options(synchronize_session=False))
    if endpoint.full_until is not None and endpoint.full_until > now:
        await Window(endpoint, parse_rate(endpoint.rate), 0).note_whether_full(session, now)


async def room_in(session: Session, endpoint_ids: Collection[str], now: datetime) -> timedelta | None:
    """How soon the rate of one of these endpoints lets an attempt through; None if none of them keeps any back."""
    full = WebhookEndpoint.id.in_(endpoint_ids), WebhookEndpoint.full_until > now
    until: datetime | None = await session.scalar(select(func.min(WebhookEndpoint.full_until)).where(*full))
    return None if until is None else until - now
