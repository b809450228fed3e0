"""Whether bytes are audio: their first ones say so, and a parser agrees."""

from __future__ import annotations

from pathlib import Path

from tinytag import TinyTag, TinyTagException

HEAD = 16


def sniff(head: bytes) -> str | None:
    """The media type that these first bytes announce, or None where they are no audio that we keep."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[4:8] == b"ftyp":
        return "audio/mp4"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 in (0xE2, 0xE4, 0xE6)):
        return "audio/mpeg"
    return {b"OggS": "audio/ogg", b"fLaC": "audio/flac"}.get(head[:4])


def measure(path: Path) -> float | None:
    """The seconds of sound in a file, or None where it holds none that can be played."""
    with path.open("rb") as file:
        if sniff(file.read(HEAD)) is None:
            return None
    try:
        duration = TinyTag.get(path, tags=False).duration
    except (TinyTagException, OSError, ValueError):
        return None
    return duration or None
