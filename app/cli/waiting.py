"""Waiting for a task from the command line: its progress, and its files."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from app.auth.callers import OPERATOR
from app.cli.context import REFUSED, fail
from app.cli.output import note
from app.clips.media_types import SUFFIXES
from app.database.failures import TRANSIENT
from app.errors import StorageUnavailable
from app.models import Clip
from app.observability.redaction import printable
from app.services import Services
from app.tasks.schemas import TaskRead
from app.tasks.transitions import FINAL
from app.upstream.hold import EXPLANATIONS, current_hold

# Between two looks at a task, in seconds: SQLite tells no other process of a change.
INTERVAL = 0.5


class NotSaved(Exception):
    """A file cannot be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the files of a task are written."""

    path: Path
    is_folder: bool

    @classmethod
    def prepare(cls, path: Path) -> Target:
        """Check before anything is paid for that files can be written there, or fail; makes the folder."""
        path = path.absolute()
        is_folder = path.is_dir() or not path.suffix
        if not is_folder and path.exists():
            fail(f"--output {path} exists already: nothing is overwritten.", REFUSED)
        folder = path if is_folder else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"--output {folder} cannot be made: {error.strerror}.", REFUSED)
        if not os.access(folder, os.W_OK | os.X_OK):
            fail(f"--output {folder} cannot be written to.", REFUSED)
        return cls(path, is_folder)

    def file_of(self, task_id: str, clip: Clip) -> Path:
        """The file of one clip: in a folder by its ids, else the name that was given, with its number from 1 on."""
        if self.is_folder:
            return self.path / f"{task_id}-{clip.index}{SUFFIXES.get(clip.content_type or '', '')}"
        return self.path if clip.index == 0 else self.path.with_stem(f"{self.path.stem}-{clip.index}")


def is_settled(task: TaskRead) -> bool:
    """Whether a task has ended and there is a copy of each clip, or none will come."""
    return task.status in FINAL and all(clip.archived_at or clip.audio_url is None for clip in task.clips)


async def follow(services: Services, task: TaskRead, seconds: float) -> tuple[TaskRead, str]:
    """Show a task's progress until it is settled or this time is over; return it as it is then, and that in words."""
    until = time.monotonic() + seconds
    with _progress() as show:
        while True:
            try:
                task = await services.tasks.get(OPERATOR, task.id)
                words = await _describe(services, task)
            except TRANSIENT:
                words = "the database does not answer; it is asked again"
            show(words)
            left = until - time.monotonic()
            if is_settled(task) or left <= 0:
                return task, words
            await asyncio.sleep(min(INTERVAL, left))


async def save_clips(services: Services, task: TaskRead, target: Target) -> list[Path]:
    """Write our copy of each clip that has one; return the absolute paths. Raises NotSaved."""
    row = await services.tasks.get_row(OPERATOR, task.id)
    written = []
    for clip in row.clips:
        if clip.archived_at is not None and clip.storage_key is not None:
            path = target.file_of(task.id, clip)
            try:
                await _save(services, clip.storage_key, clip, path)
            except StorageUnavailable as error:
                raise NotSaved(f"Our copy of clip {clip.index} cannot be read: {error.detail}") from error
            except OSError as error:
                raise NotSaved(f"{path} cannot be written: {error.strerror}.") from error
            written.append(path)
    return written


async def _save(services: Services, key: str, clip: Clip, path: Path) -> None:
    """Write one file, which has its name only once it is whole."""
    part, digest = path.with_name(f".{path.name}.{os.getpid()}.part"), sha256()
    try:
        with part.open("xb") as file:
            async for chunk in services.storage.stream(key, 0, clip.size or 0):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != clip.sha256:
            raise NotSaved(f"Our copy of clip {clip.index} is damaged.")
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


async def _describe(services: Services, task: TaskRead) -> str:
    """Where a task stands, in a few words."""
    if task.status == "queued":
        async with services.database.reads() as session:
            hold = await current_hold(session, services.settings.upstream_fingerprint)
        place = f", place {task.queue_position}" if task.queue_position else ""
        return f"queued{place}" + (f"; the queue is held: {EXPLANATIONS[hold.reason]}" if hold else "")
    if not task.clips:
        return task.status
    stored = sum(clip.archived_at is not None for clip in task.clips)
    return f"{task.status}, {len(task.clips)} clip{'s' if len(task.clips) > 1 else ''}, {stored} stored"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What shows where a task stands: one line that moves on a terminal, elsewhere a line for each change."""
    if not sys.stderr.isatty():
        yield _line_for_each_change()
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, highlight=False, emoji=False)
    text = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), TimeElapsedColumn(), text, console=console) as progress:
        shown = progress.add_task("", total=None)
        yield lambda words: progress.update(shown, description=printable(words))


def _line_for_each_change() -> Callable[[str], None]:
    started_at, last = time.monotonic(), ""

    def show(words: str) -> None:
        nonlocal last
        if words != last:
            note(f"  {time.monotonic() - started_at:6.2f} s  {words}")
            last = words

    return show
