"""How several server processes count as one: in a folder that they share, which a scrape of any of them adds up."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path

from prometheus_client import values

# In memory, where no disk can make a write wait.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made there, for this user alone
_PREFIX = "soundpost-metrics-"
BEING_MADE = timedelta(minutes=1)


@contextmanager
def shared_folder(memory: Path = SHARED_MEMORY) -> Iterator[str]:
    """
    A folder in `memory`, or where temporary files are, in which processes count together; removed after the block.

    One whose processes were all killed is removed by the next start: their locks ended with them.
    """
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_left(left):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        owner = _lock(Path(folder) / "owner.lock")
        try:
            yield folder
        finally:
            if owner is not None:
                os.close(owner)


def count_in(folder: str) -> None:
    """
    Let the metrics of this process, which are made after this, be counted in a shared folder.

    Each process has a place there of its own, for as long as it runs; the next one to have it counts on from where
    it ended. So no counter goes down where a process is replaced, and the folder does not grow.
    """
    # Something may have tidied it away, as systemd-logind does in /dev/shm at the logout of a user: not to count is
    # no reason not to serve.
    Path(folder).mkdir(mode=0o700, exist_ok=True)
    place = next(place for place in count() if _lock(Path(folder) / f"{place}.lock") is not None)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def _lock(file: Path) -> int | None:
    """Hold a file until this process ends, however it does; None if another holds it."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_left(folder: Path) -> bool:
    # A service that starts at this moment has a folder already, and no lock yet.
    if time.time() - folder.stat().st_mtime < BEING_MADE.total_seconds():
        return False
    held = [_lock(file) for file in folder.glob("*.lock")]
    for descriptor in held:
        if descriptor is not None:
            os.close(descriptor)
    return None not in held
