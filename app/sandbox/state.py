"""The options and the state of one sandbox: account, tasks, clips and journal."""

import asyncio
import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from app.sandbox.account import Account
from app.sandbox.audio import Sound
from app.sandbox.faults import TaskFaults, parse_faults
from app.sandbox.journal import CallbackAttempt, Journal


@dataclass(frozen=True)
class SandboxOptions:
    """All settings; durations are in seconds. Raises InvalidFault for an invalid `fault`."""

    api_key: str = field(default="sandbox", repr=False)
    delay: float = 3.0
    """From submit to complete; the stages before are spread over it."""
    rate: int = 20
    period: float = 10.0
    """At most `rate` submits and polls in any `period`."""
    credits: float = 1000.0
    fault: str | None = None
    """Faults of each task whose prompt has no tag, as in `drop-callbacks:0.2,http-500:0.1`."""
    seed: int = 0
    """Seeds the draws for faults with a probability, one after the other in the order of the submits."""
    callback_retry_delays: tuple[float, ...] = (60.0, 300.0, 900.0)
    callback_timeout: float = 15.0
    callback_hmac_key: str | None = field(default=None, repr=False)
    """Callbacks are signed with this key if it is set."""

    def __post_init__(self) -> None:
        parse_faults(self.fault or "")


@dataclass(frozen=True)
class Order:
    """A valid submit."""

    prompt: str
    model: str
    loop: bool
    tempo: int | None
    key: str
    lyrics: bool
    callback_url: str


@dataclass
class Clip:
    """One audio result of a task."""

    id: str
    sound: Sound
    link_expired: bool = False
    """Whether an expired link was requested, so that record-info gives a fresh one from then on."""


@dataclass
class Task:
    """One accepted submit."""

    id: str
    order: Order
    faults: TaskFaults
    delay: float
    base_url: str
    created_at: datetime
    created_monotonic: float
    clips: tuple[Clip, ...]
    callbacks: list[CallbackAttempt] = field(default_factory=list)
    trigger_counts: Counter[str] = field(default_factory=Counter)
    """How often each fault has been triggered for this task."""
    first_callback_sent: asyncio.Event = field(default_factory=asyncio.Event)
    callbacks_given_up: bool = False

    def trigger(self, fault: str, clip_id: str = "") -> bool:
        """Whether this fault applies now; if the task has it, count it towards its limit."""
        return fault in self.faults and count_trigger(self.trigger_counts, fault + clip_id, self.faults[fault])


class Sandbox:
    """The state of one app. `options` can be replaced while it runs."""

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.account = Account(options.credits)
        self.journal = Journal()
        self.tasks: dict[str, Task] = {}
        self.clips: dict[str, tuple[Task, Clip]] = {}
        self.rng = random.Random(options.seed)  # noqa: S311 - draws faults, not secrets
        self.trigger_counts: Counter[str] = Counter()
        """How often each fault has been triggered for the submits of one callback URL."""
        self.first_seen: dict[str, float] = {}
        self.stopping = asyncio.Event()

    def add(self, task: Task) -> None:
        """Store a task and its clips."""
        self.tasks[task.id] = task
        self.clips |= {clip.id: (task, clip) for clip in task.clips}

    def stop(self) -> None:
        """Wake everything that waits."""
        self.stopping.set()
        for task in self.tasks.values():
            task.first_callback_sent.set()

    async def sleep(self, seconds: float | None) -> None:
        """Wait for this many seconds (None: without end), or until the sandbox stops."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return


def count_trigger(counts: Counter[str], key: str, limit: float | None) -> bool:
    """Count a fault once more; return whether it is still within its limit. None means no limit."""
    counts[key] += 1
    return limit is None or counts[key] <= limit


def now() -> float:
    """Seconds of the monotonic clock, which all processes of one machine share."""
    return time.monotonic()


def new_id() -> str:
    """An id of 32 hex digits. It does not depend on the seed, because callers keep ids from earlier runs."""
    return uuid.uuid4().hex
