"""Whether bytes are audio, or a cover: their first ones say so, and for audio a parser and its own sizes agree."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tinytag import TinyTag, TinyTagException

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
# What a WAV file written while it was made says of its size.
UNKNOWN_SIZES = (0, 0xFFFFFFFF)
MAX_BOXES = 1_000
MAX_STEPS = 50_000


def sniff(head: bytes) -> str | None:
    """The media type that these first bytes announce, or None where they are no audio that we keep."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[4:8] == b"ftyp":
        return "audio/mp4"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 in (0xE2, 0xE4, 0xE6)):
        return "audio/mpeg"
    return {b"OggS": "audio/ogg", b"fLaC": "audio/flac"}.get(head[:4])


def sniff_image(head: bytes) -> str | None:
    """The same for covers. SVG is none of them: it can carry scripts."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    starts = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
    return next((media_type for start, media_type in starts.items() if head.startswith(start)), None)


def measure(path: Path) -> float | None:
    """The seconds of sound in a file, or None where it holds none that can be played."""
    with path.open("rb") as file:
        return measure_open(file)


def measure_open(file: IO[bytes]) -> float | None:
    """The same of an open file, wherever it stands."""
    file.seek(0)
    head = file.read(HEAD)
    media_type = sniff(head)
    size = file.seek(0, os.SEEK_END)
    end = _end(file, size, head) if media_type else size
    if media_type is None or end > size:
        # It ends before its own words say; the parser would believe those words.
        return None
    try:
        duration = TinyTag.get(file_obj=_Measured(file, end), tags=False).duration
    # The parser meets hostile bytes, and says so in many ways.
    except (TinyTagException, OSError, ValueError, ArithmeticError, LookupError, TypeError):
        return None
    return duration or None


def _end(file: IO[bytes], size: int, head: bytes) -> int:
    """Where a file ends by its own words, as far as its kind has any; what may follow is no part of it."""
    media_type = sniff(head)
    if media_type == "audio/wav":
        told = int.from_bytes(head[4:8], "little")
        return size if told in UNKNOWN_SIZES else told + 8
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
            # The last box, which goes on to the end of the file.
            return size
        position += max(length, 8)
    return position


class _Measured(io.BytesIO):
    """A file up to its end, for a parser that goes through it in so many steps at most; then it raises OSError."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        super().__init__()
        self._file, self._end, self._position, self._steps = file, end, 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise OSError("this file is made to keep its reader busy")
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
