"""The files in the storage, as rows: known here before they are written, removed when no clip names them any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, union, update

from app.database.claims import Claim, claim_due
from app.database.engine import Session, insert_new
from app.models import Clip, StoredObject

# Longer than a write to the storage can take: after it, a file whose writer was told to stop is there or never will be.
IN_FLIGHT = timedelta(minutes=5)


async def reserve(session: Session, key: str) -> bool:
    """
    Lock a key for a clip to name it; False while the file is being removed.

    The lock keeps the remover from looking for clips that name the key before this
    transaction has ended, so nobody can remove what is about to be written.
    """
    await insert_new(session, StoredObject, {"key": key, "attempts": 0})
    mine = select(StoredObject).where(StoredObject.key == key).with_for_update()
    row = (await session.scalars(mine.execution_options(populate_existing=True))).one()
    return row.fence is None


async def release(session: Session, keys: Sequence[str], due_at: datetime) -> None:
    """A clip gives up its name for these; they are removed when due, unless another one has them."""
    if keys:
        await session.execute(update(StoredObject).where(StoredObject.key.in_(keys)).values(due_at=due_at))


async def claim_abandoned(session: Session, claim: Claim) -> Sequence[StoredObject]:
    """Take due files that no clip names; those that one names stay."""
    claimed = await claim_due(session, StoredObject, claim)
    if not claimed:
        return claimed
    keys = [row.key for row in claimed]
    # A statement of its own, so that it sees what was committed while the claim waited for its locks.
    named = union(
        select(Clip.storage_key).where(Clip.storage_key.in_(keys)),
        select(Clip.image_key).where(Clip.image_key.in_(keys)),
    )
    kept = set((await session.scalars(named)).all())
    alive = update(StoredObject).where(StoredObject.key.in_(kept))
    await session.execute(alive.values(due_at=None, fence=None, attempts=0))
    return [row for row in claimed if row.key not in kept]


async def forget(session: Session, row: StoredObject) -> None:
    """The file is gone; so is its row, unless someone took over."""
    await session.execute(delete(StoredObject).where(StoredObject.key == row.key, StoredObject.fence == row.fence))
