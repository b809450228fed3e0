"""Changes of all deliveries of an endpoint: noted on its row, and made in batches, however many there are."""

from __future__ import annotations

from datetime import UTC, datetime

from app.database.engine import Session
from app.database.wakeups import DELIVERIES, SWEEPS, notify_on_commit
from app.enums import Sweep
from app.models import Delivery, WebhookEndpoint
from app.webhooks import repository

THE_BEGINNING = datetime.fromtimestamp(0, UTC)


async def begin_sweep(
    session: Session, endpoint: WebhookEndpoint, sweep: Sweep, now: datetime, since: datetime, until: datetime
) -> None:
    """
    Begin a sweep over the deliveries of a locked endpoint that were created in this time, with its first batch.

    It replaces a sweep that is not complete; of two recoveries the second goes on with the first.
    """
    if endpoint.sweep is Sweep.recover is sweep and endpoint.sweep_since and endpoint.sweep_until:
        since, until = min(since, endpoint.sweep_since), max(until, endpoint.sweep_until)
    endpoint.sweep, endpoint.sweep_since, endpoint.sweep_after, endpoint.sweep_until = sweep, since, "", until
    await continue_sweep(session, endpoint, now)
    if endpoint.sweep is not None:
        notify_on_commit(session, SWEEPS)


async def continue_sweep(session: Session, endpoint: WebhookEndpoint, now: datetime) -> None:
    """Change the next batch of a locked endpoint's deliveries; the last one completes the sweep."""
    if endpoint.sweep is Sweep.erase:
        if not await repository.erase_deliveries(session, endpoint.id):
            # What was inserted meanwhile goes with it, by the foreign key.
            await session.delete(endpoint)
        return
    since = endpoint.sweep_since or THE_BEGINNING, endpoint.sweep_after or ""
    batch = await repository.list_undelivered(session, endpoint.id, since, endpoint.sweep_until or now)
    ids = [delivery_id for _, delivery_id in batch]
    if endpoint.sweep is Sweep.recover:
        await repository.make_due(session, now, Delivery.id.in_(ids), Delivery.delivered_at.is_(None))
        notify_on_commit(session, DELIVERIES)
    else:
        await repository.give_up(session, ids)
    if len(batch) < repository.MAX_BATCH:
        endpoint.sweep, endpoint.sweep_since, endpoint.sweep_after, endpoint.sweep_until = None, None, None, None
    else:
        endpoint.sweep_since, endpoint.sweep_after = batch[-1]
