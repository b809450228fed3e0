"""The fair queue: claims of the tasks that are next by the shares of their keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import CompoundSelect, bindparam, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from app.database.claims import CLAIMED_AT, Claim, Claims
from app.database.engine import Session, insert_new
from app.models import QueueTag, Task
from app.tasks.queue.shares import Share, choose
from app.tasks.queue.walks import FIND_SHARES, VIRTUAL_TIME, along_queue, own_order

_VIRTUAL_TIME = select(QueueTag.tag).where(QueueTag.api_key_id == VIRTUAL_TIME).with_for_update()


class FairQueue:
    """
    Claims queued tasks by start-time fair queueing over their keys; `claims_of` makes the claims of a choice of rows.

    The row of the virtual time is locked first: one claim at a time looks, takes and moves
    the tags, over all replicas. They take turns by the upstream's rate anyway. What rolls
    back takes no share.
    """

    def __init__(self, claims_of: Callable[[CompoundSelect[Any]], Claims[Task]]) -> None:
        self._claims = cache(lambda keys: claims_of(_next_of_keys(keys)))

    async def claim(self, session: Session, claim: Claim) -> Sequence[Task]:
        """Claim the tasks that are next; fewer than the limit only where no more are due, or others hold them."""
        claimed: list[Task] = []
        # Keys that have had fewer tasks than they were given slots: those go to others in the next round.
        exhausted: set[str] = set()
        if claim.limit and not (await session.scalars(_VIRTUAL_TIME)).all():
            await insert_new(session, QueueTag, {"api_key_id": VIRTUAL_TIME, "tag": 0.0})
            await session.scalars(_VIRTUAL_TIME)
        while (left := claim.limit - len(claimed)) > 0:
            at_most = left + len(exhausted)
            virtual_time, found = await _find_shares(session, claim, at_most)
            shares = {share.key: share for share in found if share.key not in exhausted}
            chosen = choose(shares.values(), left)
            if not chosen:
                break
            tasks = await self._claim_of_keys(session, claim, chosen)
            served = Counter(task.api_key_id for task in tasks)
            await _move_tags(session, virtual_time, [(shares[key], count) for key, count in served.items()])
            claimed += tasks
            exhausted |= {key for key, count in chosen.items() if served[key] < count}
            if len(found) < at_most and exhausted.issuperset(shares):
                break
        return claimed

    async def _claim_of_keys(self, session: Session, claim: Claim, chosen: Mapping[str, int]) -> Sequence[Task]:
        # Some more keys, of which nothing is claimed, so that there is not a statement for each number of keys.
        size = 1 << (len(chosen) - 1).bit_length()
        keys = [*chosen.items(), *[(VIRTUAL_TIME, 0)] * (size - len(chosen))]
        parameters = {
            f"{name}_{n}": value for n, pair in enumerate(keys) for name, value in zip(_NAMES, pair, strict=True)
        }
        return await self._claims(size).claim(session, claim, **parameters)


_NAMES = "key", "most"


def _next_of_keys(keys: int) -> CompoundSelect[Any]:
    """The ids of the first due tasks of some keys, at most so many of each, locked where no other has locked them."""

    def next_of(n: int) -> Any:
        mine = along_queue(Task, Task.id.label("key"))
        mine = mine.where(Task.api_key_id == bindparam(f"key_{n}"), Task.due_at <= CLAIMED_AT)
        first = mine.order_by(*own_order(Task)).limit(bindparam(f"most_{n}")).with_for_update(skip_locked=True)
        return select(first.subquery(f"of_key_{n}").c.key)

    return union_all(*(next_of(n) for n in range(keys)))


async def _find_shares(session: Session, claim: Claim, limit: int) -> tuple[float, Sequence[Share]]:
    query = FIND_SHARES[session.get_bind().dialect.name].select
    rows = (await session.execute(query, {"due_before": claim.now, "limit": limit})).all()
    return rows[0][-1] if rows else 0.0, [Share(*row[:-1]) for row in rows]


async def _move_tags(session: Session, virtual_time: float, served: Sequence[tuple[Share, int]]) -> None:
    """Move the tag of each key behind what it was served, and the virtual time to the last start tag."""
    if not served:
        return
    latest = max(virtual_time, *(share.start_of(count - 1) for share, count in served))
    tags = {VIRTUAL_TIME: latest, **{share.key: share.start_of(count) for share, count in served}}
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(QueueTag)
    moved = insert.on_conflict_do_update(index_elements=["api_key_id"], set_={"tag": insert.excluded.tag})
    await session.execute(moved, [{"api_key_id": key, "tag": tag} for key, tag in tags.items()])
