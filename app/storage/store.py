"""Where files are kept: a local folder or an S3 bucket, behind one door."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Literal

import structlog
from obstore import sign_async
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from app.errors import StorageUnavailable

log = structlog.get_logger()

CHUNK = 256 * 1024
# A conditional write to S3 is one request, so its whole file is in memory while it is on its way.
WRITES_AT_ONCE = 2
# Due rows retry what fails here, and callers wait: better to say soon that the storage is away.
TIMEOUT = timedelta(seconds=30)
RETRIES_WITHIN = timedelta(seconds=5)


class Storage:
    """
    Files by key, each written once and never changed.

    Every method raises StorageUnavailable when the storage does not do its part;
    a storage that comes back is used again without ado.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: LocalStore | S3Store | None = None
        self._writes = asyncio.Semaphore(WRITES_AT_ONCE)

    async def keep(self, key: str, file: IO[bytes], size: int, media_type: str) -> bool:
        """Write a file under its key; False, and nothing is written, where it was there already."""
        async with self._writes:
            with _told_as_unavailable():
                try:
                    await self._put(key, file, media_type, "create")
                except AlreadyExistsError:
                    if await self._size(key) == size:
                        # Whoever wrote it may have been killed before the disk held it.
                        await self._settle(key)
                        return False
                    # A machine that lost its power may leave a file without its end, and this key is ours to write.
                    await self._put(key, file, media_type, "overwrite")
        return True

    async def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to, not including, `end`; keep them few."""
        with _told_as_unavailable():
            return bytes(await self._store().get_range_async(key, start=start, end=end))

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The same in chunks, each its own request, so that a slow reader holds neither memory nor connection."""
        for position in range(start, end, CHUNK):
            yield await self.read(key, position, min(position + CHUNK, end))

    async def remove(self, key: str) -> None:
        """Remove a file; that it is gone already is fine."""
        with _told_as_unavailable(), suppress(FileNotFoundError):
            await self._store().delete_async(key)

    async def probe(self) -> None:
        """Write, read and remove a small file."""
        key, content = f"probe/{secrets.token_hex(16)}", b"soundpost"
        with _told_as_unavailable():
            await self._store().put_async(key, content, mode="create")
        try:
            if await self.read(key, 0, len(content)) != content:
                raise StorageUnavailable("The storage gives back other bytes than it was given.")
        finally:
            await self.remove(key)

    async def presigned(self, key: str, expires_in: timedelta) -> str | None:
        """A link that lets anybody read this file straight from S3; None for a local folder."""
        with _told_as_unavailable():
            store = self._store()
            return None if isinstance(store, LocalStore) else await sign_async(store, "GET", key, expires_in)

    async def _put(self, key: str, file: IO[bytes], media_type: str, mode: Literal["create", "overwrite"]) -> None:
        store = self._store()
        file.seek(0)
        if isinstance(store, LocalStore):
            await store.put_async(key, file, mode=mode, use_multipart=False)
        else:
            await store.put_async(key, file, mode=mode, use_multipart=False, attributes={"Content-Type": media_type})
        await self._settle(key)

    async def _settle(self, key: str) -> None:
        store = self._store()
        if isinstance(store, LocalStore):
            await asyncio.to_thread(_flush, Path(store.prefix or "/") / key)

    async def _size(self, key: str) -> int:
        return (await self._store().head_async(key))["size"]

    def _store(self) -> LocalStore | S3Store:
        if self._opened is None:
            self._opened = _open(self._url)
        return self._opened


def _flush(path: Path) -> None:
    """Have the disk hold a file and its name before anybody is told that it is kept."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open(url: str) -> LocalStore | S3Store:
    if url.startswith("s3://"):
        # The endpoint, its region and its keys are read from the usual AWS_* variables.
        return S3Store.from_url(
            url,
            client_options={"allow_http": True, "connect_timeout": RETRIES_WITHIN, "timeout": TIMEOUT},
            retry_config={"max_retries": 2, "retry_timeout": RETRIES_WITHIN},
        )
    path = url.removeprefix("file:")
    folder = Path(path.removeprefix("//") if path.startswith("///") else path).absolute()
    return LocalStore(folder, mkdir=True)


@contextmanager
def _told_as_unavailable() -> Iterator[None]:
    try:
        yield
    except AlreadyExistsError:
        raise
    except (BaseError, OSError, NotImplementedError) as error:
        # The library's words go on for pages and name hosts and buckets; the first line is for the operator alone.
        log.warning("storage_failed", error=type(error).__name__, reason=str(error).partition("\n")[0])
        raise StorageUnavailable from error
