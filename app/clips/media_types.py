"""Recognises audio and cover images by their first bytes, and measures how long audio plays."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

# How many bytes `sniff` and `sniff_image` need.
HEAD = 16
SUFFIXES: Mapping[str, str] = {
    "audio/wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/ogg": ".ogg",
    "audio/flac": ".flac",
    "image/png": ".png",
    "image/jpeg": ".jpeg",
    "image/webp": ".webp",
    "image/gif": ".gif",
}
# The sizes in the header of a WAV file that was written as a stream.
UNKNOWN_SIZES = (0, 0xFFFFFFFF)
MAX_BOXES = 1_000
MAX_STEPS = 50_000


def sniff(head: bytes) -> str | None:
    """Return the media type of audio that begins with these bytes, or None for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[4:8] == b"ftyp":
        return "audio/mp4"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 in (0xE2, 0xE4, 0xE6)):
        return "audio/mpeg"
    return {b"OggS": "audio/ogg", b"fLaC": "audio/flac"}.get(head[:4])


def sniff_image(head: bytes) -> str | None:
    """Return the same for a cover image. SVG is not accepted, because it can contain scripts."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    starts = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
    return next((media_type for start, media_type in starts.items() if head.startswith(start)), None)


def measure(path: Path) -> float | None:
    """Return how many seconds the audio in a file plays, or None if it is not playable or truncated."""
    with path.open("rb") as file:
        return measure_open(file)


def measure_open(file: IO[bytes]) -> float | None:
    """Return the same for an open file, whatever its position."""
    file.seek(0)
    head = file.read(HEAD)
    media_type = sniff(head)
    size = file.seek(0, os.SEEK_END)
    end = _end(file, size, head) if media_type else size
    if media_type is None or end > size:
        # The file is truncated. The parser would report the length that its header announces.
        return None
    # Until an audio file is measured, a process need not have it in memory.
    from tinytag import TinyTag, TinyTagException

    try:
        duration = TinyTag.get(file_obj=_LimitedReader(file, end), tags=False).duration
    # Hostile bytes make the parser raise any of these.
    except (TinyTagException, OSError, ValueError, ArithmeticError, LookupError, TypeError):
        return None
    return duration or None


def _end(file: IO[bytes], size: int, head: bytes) -> int:
    """The size that the file announces, or `size` if its type announces none. Bytes after it do not belong to it."""
    media_type = sniff(head)
    if media_type == "audio/wav":
        announced = int.from_bytes(head[4:8], "little")
        return size if announced in UNKNOWN_SIZES else announced + 8
    return _boxes_end(file, size) if media_type == "audio/mp4" else size


def _boxes_end(file: IO[bytes], size: int) -> int:
    position, boxes = 0, 0
    while position < size and boxes < MAX_BOXES:
        boxes += 1
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            # The last box, which extends to the end of the file (ISO/IEC 14496-12 §4.2).
            return size
        position += max(length, 8)
    return position


class _LimitedReader(io.BytesIO):
    """The first `end` bytes of a file, for a parser. Raises OSError after MAX_STEPS reads, against endless loops."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        super().__init__()
        self._file, self._end, self._position, self._steps = file, end, 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise OSError("the parser takes too many steps")
        left = max(self._end - self._position, 0)
        self._file.seek(self._position)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position
