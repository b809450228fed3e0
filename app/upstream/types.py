"""The requests to an upstream and its results, in types that no vendor shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from app.enums import ErrorCode

Value = TypeVar("Value", covariant=True)


class Outcome(StrEnum):
    """
    What came of one call to the upstream.

    A submit that is `invalid`, `rejected`, `throttled`, `held` or `not_sent` has provably
    created nothing. All other calls create nothing anyway and may be repeated.
    """

    ok = "ok"
    # A poll found no record yet, which is usual soon after a submit.
    pending = "pending"
    # The submit is refused because of what it asks for.
    invalid = "invalid"
    # The submit is refused for another reason.
    rejected = "rejected"
    throttled = "throttled"
    # Nothing can be submitted until the operator has acted; `hold_reason` says why.
    held = "held"
    # The submit may have created a task, and its response is lost or unreadable.
    ambiguous = "ambiguous"
    not_sent = "not_sent"
    # The call did not give what was asked for.
    failed = "failed"


class HoldReason(StrEnum):
    """Why nothing more can be submitted for now."""

    no_credits = "no_credits"
    bad_key = "bad_key"
    blocked = "blocked"
    # Our own request breaks the rules of HTTP, and so will every other.
    unsendable = "unsendable"


@dataclass(frozen=True, slots=True)
class Timing:
    """When a call began, in seconds of the monotonic clock, and how long it took."""

    began: float
    took: timedelta


@dataclass(frozen=True, slots=True)
class Result(Generic[Value]):
    """
    The outcome of one call.

    `value` is set exactly when the outcome is `ok`, `hold_reason` exactly when it is
    `held`. `code` is the one in the response's body, or the HTTP status where the body has none.
    `timing` is that of the gateway's call.
    """

    outcome: Outcome
    value: Value | None = None
    code: int | None = None
    message: str | None = None
    retry_after: timedelta | None = None
    hold_reason: HoldReason | None = None
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SoundRequest:
    """The body of one submit. `sound_tempo` is in beats per minute; None lets the upstream choose."""

    prompt: str
    model: str
    sound_loop: bool
    sound_tempo: int | None
    sound_key: str
    grab_lyrics: bool
    callback_url: str


class Stage(StrEnum):
    """How far the upstream says a task is. `unclear`: over, but without audio."""

    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    unclear = "unclear"


@dataclass(frozen=True, slots=True)
class ReportedClip:
    """One clip as the upstream describes it. `duration` is in seconds; empty texts are None."""

    upstream_clip_id: str | None = None
    title: str | None = None
    tags: str | None = None
    duration: float | None = None
    model_name: str | None = None
    image_url: str | None = None
    audio_url: str | None = None
    source_audio_url: str | None = None

    @property
    def has_audio(self) -> bool:
        """Whether there is a link to download from."""
        return self.audio_url is not None or self.source_audio_url is not None


@dataclass(frozen=True, slots=True)
class Report:
    """
    What the upstream says about one task, by callback or poll.

    `code` and `message` describe a failure; `error_code` is our word for it and set only then.
    `unknown_word` is its word for the stage where that is in no list of ours.
    """

    stage: Stage
    upstream_task_id: str | None = None
    clips: tuple[ReportedClip, ...] = ()
    code: int | None = None
    message: str | None = None
    error_code: ErrorCode | None = None
    refunded: bool = False
    unknown_word: str | None = None


@dataclass(frozen=True, slots=True)
class LyricWord:
    """One sung word, `start` and `end` in seconds from the beginning of the clip."""

    word: str
    start: float
    end: float


class Upstream(Protocol):
    """
    What the service needs of an upstream, so that nothing but the composition root has to import one.

    No method raises for what the network or the upstream does. Calls go through
    `UpstreamGateway`, which keeps within the rate.
    """

    @property
    def secrets(self) -> Sequence[str]:
        """The keys that it is called with, which it may repeat, and which must be redacted."""

    @property
    def needs_signature(self) -> bool:
        """Whether callbacks must be signed."""

    async def submit(self, request: SoundRequest) -> Result[str]:
        """Request a sound. Returns the upstream's id of the task."""

    async def record_info(self, upstream_task_id: str) -> Result[Report]:
        """Poll a task."""

    async def credits(self) -> Result[Decimal]:
        """The credits that are left, with fractions."""

    async def lyrics(self, upstream_task_id: str, upstream_clip_id: str) -> Result[tuple[LyricWord, ...]]:
        """The words of a finished clip. None at all is normal for sounds."""

    def read_callback(self, body: bytes) -> Report | None:
        """What a callback reports, or None when it reports nothing that we can read."""

    def note_unknown(self, report: Report | None) -> None:
        """Count what of a report that has just come is in no list of ours."""

    def is_signed(self, headers: Mapping[str, str], report: Report | None, now: datetime) -> bool:
        """Whether the upstream signed the callback that these headers and this report come from."""
