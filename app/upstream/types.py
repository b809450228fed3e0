"""What we ask of the upstream and what it can say to us, in our own words."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum


class Verdict(StrEnum):
    """What became of a submit."""

    created = "created"
    rejected = "rejected"
    throttled = "throttled"
    held = "held"
    ambiguous = "ambiguous"
    not_sent = "not_sent"


class HoldReason(StrEnum):
    """Why nothing more can be submitted for now."""

    no_credits = "no_credits"
    bad_key = "bad_key"
    blocked = "blocked"


class Stage(StrEnum):
    """How far the upstream says a task is. `unclear`: over, but the audio does not show."""

    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    unclear = "unclear"


class PollVerdict(StrEnum):
    """What came of asking for a task. `pending` is not known yet; `failed` may be asked again."""

    report = "report"
    pending = "pending"
    throttled = "throttled"
    held = "held"
    failed = "failed"


class ReadVerdict(StrEnum):
    """What came of reading credits or lyrics. `failed` may be asked again."""

    read = "read"
    throttled = "throttled"
    held = "held"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class SoundOrder:
    """One sound to be made. `sound_tempo` is in BPM, None lets the upstream choose."""

    prompt: str
    model: str
    sound_loop: bool
    sound_tempo: int | None
    sound_key: str
    grab_lyrics: bool


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """The outcome of one submit. `code` is the body's, or the HTTP status where the body has none."""

    verdict: Verdict
    upstream_task_id: str | None = None
    code: int | None = None
    message: str | None = None
    retry_after: timedelta | None = None
    hold_reason: HoldReason | None = None


@dataclass(frozen=True, slots=True)
class ReportedClip:
    """One result as the upstream describes it. `duration` is in seconds; empty texts are None."""

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
        """Whether there is something to download."""
        return self.audio_url is not None or self.source_audio_url is not None


@dataclass(frozen=True, slots=True)
class Report:
    """
    What the upstream says about one task, by callback or poll.

    `code` and `message` tell of a failure; `error_code` is our word for it and set only then.
    """

    stage: Stage
    upstream_task_id: str | None = None
    clips: tuple[ReportedClip, ...] = ()
    code: int | None = None
    message: str | None = None
    error_code: str | None = None
    refunded: bool = False


@dataclass(frozen=True, slots=True)
class PollAnswer:
    """The outcome of one poll. `report` is set exactly when `kind` is `report`."""

    kind: PollVerdict
    report: Report | None = None
    code: int | None = None
    message: str | None = None
    retry_after: timedelta | None = None
    hold_reason: HoldReason | None = None


@dataclass(frozen=True, slots=True)
class CreditsAnswer:
    """The outcome of asking for credits. `credits` is set exactly when `kind` is `read`."""

    kind: ReadVerdict
    credits: Decimal | None = None
    code: int | None = None
    message: str | None = None
    retry_after: timedelta | None = None
    hold_reason: HoldReason | None = None


@dataclass(frozen=True, slots=True)
class LyricWord:
    """One sung word, `start` and `end` in seconds from the beginning of the clip."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class LyricsAnswer:
    """The outcome of asking for lyrics. A sound without words is `read` with none."""

    kind: ReadVerdict
    words: tuple[LyricWord, ...] = ()
    code: int | None = None
    message: str | None = None
    retry_after: timedelta | None = None
    hold_reason: HoldReason | None = None
