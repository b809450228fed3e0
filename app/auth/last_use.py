"""When each key was last used, to the minute: noted by requests in memory, and written beside them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy import or_, select, update

from app.database.engine import Database
from app.database.failures import TRANSIENT
from app.models import ApiKey

log = structlog.get_logger()
# A database that does not answer by then is asked no longer: the next use is written instead.
WRITE_TIMEOUT = timedelta(seconds=5)


class LastUses:
    """
    The keys that were used in this process since the last write, which all go into the next one.

    It comes `write_after` the first of them: at most one a minute, and none while no key is used. A process that is
    killed loses the uses of that time.
    """

    write_after = timedelta(minutes=1)

    def __init__(self, database: Database) -> None:
        self._database = database
        self._used = set[str]()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        """A request has come with this key."""
        if key_id in self._used:
            return
        self._used.add(key_id)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.write_after.total_seconds(), self._write_soon)

    async def write(self) -> None:
        """Write what is noted now; while the database is away it is lost."""
        used = sorted(self._take())
        if not used:
            return
        try:
            async with asyncio.timeout(WRITE_TIMEOUT.total_seconds()):
                await self._store(used)
        except TRANSIENT as error:
            log.warning("last_uses_not_written", keys=len(used), error=type(error).__name__)

    def _write_soon(self) -> None:
        self._writing = asyncio.create_task(self.write())

    def _take(self) -> set[str]:
        if self._timer is not None:
            self._timer.cancel()
        used, self._used, self._timer = self._used, set(), None
        return used

    async def _store(self, key_ids: list[str]) -> None:
        async with self._database.transaction() as (session, now):
            # Another replica may have written the same minute. A row that an order has locked is left to the next time:
            # nothing waits for this, and this for nothing.
            is_stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - self.write_after)
            stale = select(ApiKey.id).where(ApiKey.id.in_(key_ids), is_stale)
            free = stale.with_for_update(skip_locked=True, key_share=True)
            await session.execute(update(ApiKey).where(ApiKey.id.in_(free)).values(last_used_at=now))
