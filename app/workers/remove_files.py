"""Removes files from the storage that no clip refers to any more."""

from __future__ import annotations

import structlog

from app.database.claims import Claim, is_due
from app.database.wakeups import ERASURES
from app.errors import StorageUnavailable
from app.models import StoredObject
from app.retention import REMOVAL_LEASE, remove_file
from app.services import Services
from app.storage import references
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

CONCURRENCY = 8


def remove_files_loop(services: Services) -> Loop[StoredObject]:
    """Return the loop that removes files. A row is deleted after its file: a crash leaves no file without a row."""

    async def claim(limit: int) -> Claimed[StoredObject]:
        async with services.database.transaction() as (session, now):
            return Claimed(await references.claim_abandoned(session, Claim(now, REMOVAL_LEASE, limit)))

    async def work(row: StoredObject) -> None:
        try:
            await remove_file(services.database, services.storage, row)
        except StorageUnavailable:
            # The row is due again when the lease ends.
            return
        log.info("file_removed", key=row.key, attempt=row.attempts)

    return Loop("remove_files", services.wakeups.event(ERASURES), CONCURRENCY, claim, work, is_due(StoredObject))
