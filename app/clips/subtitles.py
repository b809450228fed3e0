"""Words with times, written as subtitles: a few words at once, as long as they are sung."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LINE_LENGTH = 42
MAX_PAUSE = 1.5


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it is sung, in seconds."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from one moment to another."""

    text: str
    start: float
    end: float


def srt(words: Sequence[Word]) -> str:
    """SubRip."""
    blocks = (
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(words), 1)
    )
    return "\n".join(blocks)


def vtt(words: Sequence[Word]) -> str:
    """WebVTT, in which `<`, `&` and `-->` mean something and are escaped."""
    blocks = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(words)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def cues(words: Sequence[Word]) -> list[Cue]:
    """Put words together until a line is full, a pause comes, or the words themselves break the line."""
    found: list[Cue] = []
    is_broken = True
    for word in words:
        text = " ".join(word.word.split())
        if text and (is_broken or not _fits(found[-1], text, word.start)):
            found.append(Cue(text, word.start, word.end))
            is_broken = False
        elif text:
            last = found[-1]
            found[-1] = Cue(f"{last.text} {text}", last.start, max(last.end, word.end))
        is_broken = is_broken or word.word.rstrip(" ").endswith("\n")
    return found


def _fits(cue: Cue, text: str, start: float) -> bool:
    return len(cue.text) + 1 + len(text) <= MAX_LINE_LENGTH and start - cue.end <= MAX_PAUSE


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
