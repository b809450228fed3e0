"""Completes what was begun on all deliveries of an endpoint, one batch in each transaction."""

from __future__ import annotations

from sqlalchemy import exists

from app.database.wakeups import SWEEPS
from app.models import WebhookEndpoint
from app.services import Services
from app.webhooks import repository
from app.webhooks.sweeps import continue_sweep
from app.workers.runner import Claimed, Loop


def sweep_loop(services: Services) -> Loop[str]:
    """Return the loop over the endpoints whose sweeps are not complete. It needs no leases: each batch is a commit."""

    async def claim(_limit: int) -> Claimed[str]:
        async with services.database.reads() as session:
            endpoint_ids = await repository.list_swept(session)
        return Claimed([services.rng.choice(endpoint_ids)] if endpoint_ids else [])

    async def work(endpoint_id: str) -> None:
        async with services.database.writes.begin() as session:
            endpoint = await repository.lock_swept(session, endpoint_id)
            if endpoint is not None:
                await continue_sweep(session, endpoint, await services.database.now(session))

    return Loop(
        "sweep", services.wakeups.event(SWEEPS), 1, claim, work, exists().where(WebhookEndpoint.sweep.isnot(None))
    )
