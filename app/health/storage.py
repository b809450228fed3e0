"""Whether audio can be stored: written seldom, however many ask, and at once when something has failed."""

from __future__ import annotations

import time
from datetime import timedelta

from app.errors import StorageUnavailable
from app.health.results import Check
from app.storage.store import Storage

# As many of the largest files are stored and spooled at once: with less room the storage is nearly full.
FILES_WITH_ROOM = 2
WRITE_EVERY = timedelta(seconds=30)
ADVICE = (
    "it does not store a file: check SOUNDPOST_STORAGE_URL (for S3 the AWS_* variables too), its free space and its"
    " permissions"
)


class StorageCheck:
    """
    Whether the storage stores a file. Degraded while fewer than `room` bytes are free where files are spooled.

    A file is written once in `write_every` while all goes well, and in each check after a
    failure, be it of a check or of any other use of this process: so a failure and its end
    are both seen at the next look.
    """

    def __init__(self, storage: Storage, room: int, write_every: timedelta = WRITE_EVERY) -> None:
        self._storage, self._room, self._write_every = storage, room, write_every
        self._failures: int | None = None
        self._write_at = 0.0

    async def check(self) -> Check:
        """The state of the storage now."""
        try:
            if self._failures != self._storage.failures or time.monotonic() >= self._write_at:
                failures = self._storage.failures
                await self._storage.probe()
                self._failures = failures
                self._write_at = time.monotonic() + self._write_every.total_seconds()
            free = await self._storage.free_space()
        except StorageUnavailable as error:
            return Check(status="down", detail=ADVICE if error.detail == error.advice else f"{error.detail} {ADVICE}")
        if free < self._room:
            amounts = f"{free // 1_000_000} MB are free, less than {self._room // 1_000_000} MB"
            return Check(status="degraded", detail=f"a small file was written, but only {amounts}: make room there")
        return Check(status="ok", detail="a small file was written, read and removed")
