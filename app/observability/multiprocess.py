"""How several server processes count as one: in a folder that they share, which a scrape of any of them adds up."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from prometheus_client import values

# In memory, where no disk can make a write wait.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made there, for this user alone
_PREFIX = "soundpost-metrics-"


@contextmanager
def shared_folder() -> Iterator[str]:
    """
    A folder in which several processes count together, removed at the end of the block.

    One whose processes were all killed is removed by the next start: their locks ended with them.
    """
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        if os.access(left, os.W_OK) and all(map(_is_left, left.glob("*.lock"))):
            shutil.rmtree(left, ignore_errors=True)
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


def _is_left(file: Path) -> bool:
    descriptor = _lock(file)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None
