"""Files by key, in a local folder or an S3 bucket."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import structlog
from obstore import sign_async
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, S3Store

from app.config.values import cleaned
from app.errors import StorageUnavailable
from app.observability.redaction import redact

log = structlog.get_logger()

# Bytes that one read takes.
CHUNK = 256 * 1024
# A conditional write to S3 is one request, and has its whole file in memory.
MAX_CONCURRENT_WRITES = 2
# Where the bucket is and who may use it, in the AWS_* variables of these names; the first that is set counts.
AWS_SETTINGS = {
    "access_key_id": ("ACCESS_KEY_ID",),
    "secret_access_key": ("SECRET_ACCESS_KEY",),
    "session_token": ("SESSION_TOKEN", "TOKEN"),
    "region": ("REGION", "DEFAULT_REGION"),
    "endpoint": ("ENDPOINT_URL_S3", "ENDPOINT_URL", "ENDPOINT"),
}
# Short, since workers retry what fails here and clients wait for reads.
REQUEST_TIMEOUT = timedelta(seconds=30)
RETRY_TIMEOUT = timedelta(seconds=5)


def waveform_key(key: str) -> str:
    """The key of the waveform of stored audio, which is removed with it."""
    return f"{key}.peaks.json"


class Storage:
    """
    Files by key, each written once and never changed.

    Every method raises StorageUnavailable when the storage fails. The next call tries
    again: there is no state to recover.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: LocalStore | S3Store | None = None
        self._writes = asyncio.Semaphore(MAX_CONCURRENT_WRITES)
        # How many of its operations have failed in this process, which a check of the storage compares with before.
        self.failures = 0

    async def write(self, key: str, file: IO[bytes], size: int, media_type: str) -> bool:
        """Write a file of `size` bytes under its key. False, and nothing is written, when it is stored already."""
        async with self._writes:
            with self._counting_failures():
                try:
                    await self._put(key, file, media_type, "create")
                except AlreadyExistsError:
                    if await self._size(key) == size:
                        # Its writer may have been killed before the fsync.
                        await self._sync(key)
                        return False
                    # A power failure can leave a file without its end.
                    await self._put(key, file, media_type, "overwrite")
        return True

    async def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to, not including, `end`; all of them are in memory."""
        with self._counting_failures():
            return bytes(await self._store().get_range_async(key, start=start, end=end))

    async def read_small(self, key: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes, None if there is none or a larger one."""
        with self._counting_failures():
            try:
                found = await self._store().get_async(key)
                return bytes(await found.bytes_async()) if found.meta["size"] <= limit else None
            except FileNotFoundError:
                return None

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The same in chunks, one request each, so that a slow client holds one chunk and no connection."""
        for position in range(start, end, CHUNK):
            yield await self.read(key, position, min(position + CHUNK, end))

    async def remove(self, key: str) -> None:
        """Remove a file, if it exists."""
        with self._counting_failures(), suppress(FileNotFoundError):
            await self._store().delete_async(key)

    async def spool(self) -> IO[bytes]:
        """
        Open a temporary file without a name, for what is to be stored; the caller closes it.

        It is beside the files of a local folder, which must be writable and large enough
        anyway, where the system's temporary folder may be missing, read-only or small.
        """
        with self._counting_failures():
            store = self._store()
        folder = store.prefix if isinstance(store, LocalStore) else None
        try:
            return await asyncio.to_thread(tempfile.TemporaryFile, dir=folder)
        except OSError as error:
            raise self._not_spooled(folder, error) from error

    async def free_space(self) -> int:
        """The bytes that are free where files are spooled: beside the files of a folder, else in TMPDIR."""
        with self._counting_failures():
            store = self._store()
        folder = store.prefix if isinstance(store, LocalStore) else None
        try:
            return (await asyncio.to_thread(shutil.disk_usage, folder or tempfile.gettempdir())).free
        except OSError as error:
            raise self._not_spooled(folder, error) from error

    async def probe(self) -> None:
        """Write, read and remove a small file and a temporary one, to see whether the storage works."""
        key, content = f"probe/{secrets.token_hex(16)}", b"soundpost"
        with self._counting_failures():
            await self._store().put_async(key, content, mode="create")
        try:
            if await self.read(key, 0, len(content)) != content:
                raise StorageUnavailable("The storage returned other bytes than were written.")
        finally:
            await self.remove(key)
        with await self.spool() as file:
            try:
                file.write(content)
                file.flush()
            except OSError as error:
                raise StorageUnavailable(f"No temporary file can be written: {error.strerror}.") from error

    async def presigned(self, key: str, expires_in: timedelta) -> str | None:
        """A URL at which anybody can GET this file from S3 until it expires; None for a local folder."""
        with self._counting_failures():
            store = self._store()
            return None if isinstance(store, LocalStore) else await sign_async(store, "GET", key, expires_in)

    async def _put(self, key: str, file: IO[bytes], media_type: str, mode: Literal["create", "overwrite"]) -> None:
        store = self._store()
        file.seek(0)
        if isinstance(store, LocalStore):
            await asyncio.to_thread(_put_durably, store, key, file, mode)
        else:
            await store.put_async(key, file, mode=mode, use_multipart=False, attributes={"Content-Type": media_type})

    async def _sync(self, key: str) -> None:
        store = self._store()
        if isinstance(store, LocalStore):
            await asyncio.to_thread(_fsync, _path_of(store, key))

    async def _size(self, key: str) -> int:
        return (await self._store().head_async(key))["size"]

    def _not_spooled(self, folder: object, error: OSError) -> StorageUnavailable:
        self.failures += 1
        where = "beside the stored files" if folder else "in the temporary folder (TMPDIR)"
        return StorageUnavailable(f"No temporary file can be opened {where}: {error.strerror}.")

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            with raise_as_unavailable():
                yield
        except StorageUnavailable:
            self.failures += 1
            raise

    def _store(self) -> LocalStore | S3Store:
        if self._opened is None:
            self._opened = _open(self._url)
        return self._opened


def _put_durably(store: LocalStore, key: str, file: IO[bytes], mode: Literal["create", "overwrite"]) -> None:
    store.put(key, file, mode=mode, use_multipart=False)
    _fsync(_path_of(store, key))


def _path_of(store: LocalStore, key: str) -> Path:
    return Path(store.prefix or "/") / key


def _fsync(path: Path) -> None:
    """Flush a file and its folder's entry to the disk."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open(url: str) -> LocalStore | S3Store:
    if url.startswith("s3://"):
        return S3Store.from_url(
            url,
            config=_aws_settings(),
            client_options={"allow_http": True, "connect_timeout": RETRY_TIMEOUT, "timeout": REQUEST_TIMEOUT},
            retry_config={"max_retries": 2, "retry_timeout": RETRY_TIMEOUT},
        )
    path = url.removeprefix("file:")
    folder = Path(path.removeprefix("//") if path.startswith("///") else path).absolute()
    return LocalStore(folder, mkdir=True)


def _aws_settings() -> Any:
    """What the AWS_* variables say, without what surrounds their values; the library reads the others by itself."""
    settings = {}
    for name, variables in AWS_SETTINGS.items():
        given = (cleaned(os.environ.get(f"AWS_{variable}", "")) for variable in variables)
        if value := next(filter(None, given), None):
            settings[name] = value
    return settings


def _first_line(error: Exception) -> str:
    named = ((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    secrets = [value.strip(" \t\r\n\"'") for name, value in named if "SECRET" in name or "TOKEN" in name]
    return redact(str(error), *secrets).partition("\n")[0]


@contextmanager
def raise_as_unavailable() -> Iterator[None]:
    """Log what the storage, or a temporary file of it, raises inside the block, and raise StorageUnavailable."""
    try:
        yield
    except AlreadyExistsError:
        raise
    # Not only its own errors: for a value that it does not expect the library panics, as a bare Exception.
    except Exception as error:
        # The library's message has many lines and names hosts and buckets: its first line goes to the log alone.
        log.warning("storage_failed", error=type(error).__name__, reason=_first_line(error))
        raise StorageUnavailable from error
