"""Sung words with their times as subtitles: SubRip and WebVTT."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from app.upstream.types import LyricWord

MAX_LINE_LENGTH = 42
# In seconds.
MAX_PAUSE = 1.5


@dataclass(frozen=True, slots=True)
class Cue:
    """One line of text, shown from `start` to `end` in seconds."""

    text: str
    start: float
    end: float


def srt(words: Sequence[LyricWord]) -> str:
    """The words as SubRip (`.srt`)."""
    blocks = (
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(words), 1)
    )
    return "\n".join(blocks)


def vtt(words: Sequence[LyricWord]) -> str:
    """The words as WebVTT (`.vtt`), in which `<`, `&` and `-->` have a meaning and are escaped."""
    blocks = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(words)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def cues(words: Sequence[LyricWord]) -> list[Cue]:
    """Join words into lines. A new line begins when one is full, after a pause, and at a line break in the words."""
    lines: list[Cue] = []
    is_broken = True
    for word in words:
        text = " ".join(word.word.split())
        if text and (is_broken or not _fits(lines[-1], text, word.start)):
            lines.append(Cue(text, word.start, word.end))
            is_broken = False
        elif text:
            last = lines[-1]
            lines[-1] = Cue(f"{last.text} {text}", last.start, max(last.end, word.end))
        is_broken = is_broken or word.word.rstrip(" ").endswith("\n")
    return lines


def _fits(cue: Cue, text: str, start: float) -> bool:
    return len(cue.text) + 1 + len(text) <= MAX_LINE_LENGTH and start - cue.end <= MAX_PAUSE


def _time(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{decimal_mark}{rest % 1000:03}"
