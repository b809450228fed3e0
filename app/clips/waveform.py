"""The waveform of a clip's audio: made once for each stored file, and kept beside it."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import structlog

from app.clips import decoder
from app.clips.repository import is_stored_file
from app.database.engine import Database
from app.errors import NotFound, StorageUnavailable
from app.storage.store import Storage, waveform_key

log = structlog.get_logger()

# A file of 50 MB that plays for an hour takes a tenth of it.
TIMEOUT = timedelta(seconds=30)
MAX_SIZE = 64 * 1024
# What is shown of audio that cannot be decoded.
NONE = b'{"duration":0.0,"peaks":[]}\n'


class Waveforms:
    """Makes waveforms, one at a time in a process, in a process of its own that hostile audio may crash."""

    def __init__(self, storage: Storage, database: Database) -> None:
        self._storage, self._database = storage, database
        self._one_at_a_time = asyncio.Semaphore(1)

    async def read(self, key: str, size: int) -> bytes:
        """
        The peaks and the duration of the stored audio under this key, of `size` bytes, as JSON.

        Raises StorageUnavailable, and NotFound where no decoder is installed.
        """
        kept = waveform_key(key)
        found = await self._storage.read_small(kept, MAX_SIZE)
        if found is not None:
            return found
        async with self._one_at_a_time:
            # Who waited, or another replica, may have made it.
            found = await self._storage.read_small(kept, MAX_SIZE)
            if found is not None:
                return found
            made = await self._make(key, size)
            # It can be made again, where the storage takes no more files.
            with suppress(StorageUnavailable):
                await self._keep(key, kept, made)
        return made

    async def _make(self, key: str, size: int) -> bytes:
        if find_spec(decoder.LIBRARY) is None:
            raise NotFound
        with await self._storage.spool() as file:
            async for chunk in self._storage.stream(key, 0, size):
                await asyncio.to_thread(file.write, chunk)
            file.seek(0)
            code, peaks = await _decode(file)
        if code != 0:
            log.warning("waveform_not_made", key=key, exit_code=code)
        return peaks if code == 0 else NONE

    async def _keep(self, key: str, kept: str, made: bytes) -> None:
        await self._storage.write(kept, io.BytesIO(made), len(made), "application/json")
        async with self._database.reads() as session:
            is_stored = await is_stored_file(session, key)
        if not is_stored:
            # The file was removed meanwhile, and its remover found nothing beside it yet.
            await self._storage.remove(kept)


async def _decode(file: IO[bytes]) -> tuple[int, bytes]:
    """The exit code of the decoder, and what it printed. It knows nothing of our settings, and ends with its caller."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(Path(decoder.__file__)),
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        async with asyncio.timeout(TIMEOUT.total_seconds()):
            printed, _ = await process.communicate()
    except TimeoutError:
        return -9, b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed
