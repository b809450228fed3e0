"""Rows of stored files: inserted before the file is written, removed when no clip refers to the file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, union, update

from app.database.claims import Claim, Claims
from app.database.engine import Session, insert_new
from app.models import Clip, StoredObject

# Longer than a write to the storage can take: after it, a cancelled write has stored its file or never will.
IN_FLIGHT = timedelta(minutes=5)
_DUE = Claims(StoredObject)


async def reserve(session: Session, keys: Collection[str]) -> Collection[str]:
    """
    Lock keys so that clips can refer to them; return them without those whose file is being removed.

    The lock makes a concurrent remover wait for the end of this transaction before it
    looks for clips with this key: it cannot remove a file that is about to be written.
    """
    if not keys:
        return keys
    await insert_new(session, StoredObject, *({"key": key, "attempts": 0} for key in sorted(keys)))
    free = select(StoredObject.key).where(StoredObject.key.in_(keys), StoredObject.fence.is_(None))
    return set(await session.scalars(free.order_by(StoredObject.key).with_for_update()))


async def release(session: Session, keys: Sequence[str], due_at: datetime) -> None:
    """Make the files of these keys due for removal: a clip no longer refers to them, but another one may."""
    if keys:
        await session.execute(update(StoredObject).where(StoredObject.key.in_(keys)).values(due_at=due_at))


async def claim_abandoned(session: Session, claim: Claim) -> Sequence[StoredObject]:
    """Claim the due files to which no clip refers; the others are no longer due."""
    claimed = await _DUE.claim(session, claim)
    if not claimed:
        return claimed
    keys = [row.key for row in claimed]
    # A separate statement, so that it sees what was committed while the claim waited for locks.
    referenced = union(
        select(Clip.storage_key).where(Clip.storage_key.in_(keys)),
        select(Clip.image_key).where(Clip.image_key.in_(keys)),
    )
    in_use = set((await session.scalars(referenced)).all())
    reset = update(StoredObject).where(StoredObject.key.in_(in_use))
    await session.execute(reset.values(due_at=None, fence=None, attempts=0))
    return [row for row in claimed if row.key not in in_use]


async def forget(session: Session, row: StoredObject) -> None:
    """Delete the row of a removed file, unless another worker has claimed it since."""
    await session.execute(delete(StoredObject).where(StoredObject.key == row.key, StoredObject.fence == row.fence))
