"""Where a clip's next download goes, when, and whose turn it is: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta

from app.database.backoff import exponential
from app.egress.rules import authority_of
from app.models import QUESTIONS, Clip, Task
from app.tasks.clips import needs_audio, needs_cover, needs_lyrics

MIN_RETRY_DELAY = timedelta(seconds=2)
MAX_RETRY_DELAY = timedelta(hours=1)
# A link that failed once may have expired: the upstream is asked for a fresh one, and then the other link is tried too.
BOTH_LINKS_FROM_ATTEMPT = 2


def retry_delay(attempts: int) -> timedelta:
    """The delay after this many attempts that did not get everything."""
    return exponential(attempts - 1, MIN_RETRY_DELAY, MAX_RETRY_DELAY)


def links_to_try(clip: Clip) -> list[str]:
    """The links to the audio, best first: the deprecated one only after the other failed, never the stream's."""
    links = [clip.upstream_audio_url]
    if clip.attempts >= BOTH_LINKS_FROM_ATTEMPT or clip.upstream_audio_url is None:
        links.append(clip.source_audio_url)
    return list(dict.fromkeys(link for link in links if link is not None))


def share_places(lanes: Sequence[str], in_flight: Mapping[str, int], places: int) -> Counter[str]:
    """
    How many clips of each lane to claim for the free places.

    A lane gets one more while more places are free than it has: one host alone gets half
    of them, and the next still finds half of the rest, however slow the others are.
    """
    shares: Counter[str] = Counter()
    growing = list(lanes)
    while growing:
        for lane in list(growing):
            if in_flight.get(lane, 0) + shares[lane] < places:
                shares[lane] += 1
                places -= 1
            else:
                growing.remove(lane)
    return shares


def next_lane(clip: Clip, task: Task, *, is_asked: bool) -> str | None:
    """The lane of what a clip misses next, or None if it misses nothing; `is_asked`: the upstream was just asked."""
    if needs_audio(clip):
        return authority_of(next(iter(links_to_try(clip)), "")) if is_asked else QUESTIONS
    if needs_lyrics(clip, task) and not (is_asked and needs_cover(clip)):
        return QUESTIONS
    return authority_of(clip.image_url or "") if needs_cover(clip) else None
