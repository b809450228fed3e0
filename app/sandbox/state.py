"""What one sandbox is started with and what it remembers: options, account, tasks, journal."""

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
    """Every knob; all spans are seconds. Raises InvalidFault when `fault` names an unknown fault."""

    api_key: str = field(default="sandbox", repr=False)
    delay: float = 3.0
    """From submit to complete; the stages between are spread inside."""
    rate: int = 20
    period: float = 10.0
    """At most `rate` submits and polls in any `period`."""
    credits: float = 1000.0
    fault: str | None = None
    """Applied to each task whose prompt has no tag of its own, e.g. `drop-callbacks:0.2,http-500:0.1`."""
    seed: int = 0
    """Decides which tasks a fault with a probability meets, in the order of their arrival."""
    callback_retry_delays: tuple[float, ...] = (60.0, 300.0, 900.0)
    callback_timeout: float = 15.0
    callback_hmac_key: str | None = field(default=None, repr=False)
    """Signs callbacks when set."""

    def __post_init__(self) -> None:
        parse_faults(self.fault or "")


@dataclass(frozen=True)
class Order:
    """A valid submit, as the vendor's page names its fields."""

    prompt: str
    model: str
    loop: bool
    tempo: int | None
    key: str
    lyrics: bool
    callback_url: str


@dataclass
class Clip:
    """One audio result, and what has become of its links."""

    id: str
    sound: Sound
    link_expired: bool = False
    """A dead link was tried, so that the next record-info may give a fresh one."""


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
    """How often each limited fault has met this task."""
    first_callback_sent: asyncio.Event = field(default_factory=asyncio.Event)
    callbacks_given_up: bool = False

    def trigger(self, fault: str, what: str = "") -> bool:
        """Whether this task has this fault, and has it still; counts towards the fault's end."""
        return fault in self.faults and not is_exhausted(self.faults[fault], self.trigger_counts, fault + what)


class Sandbox:
    """The state behind one app. `options` may be replaced while it runs."""

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.account = Account(options.credits)
        self.journal = Journal()
        self.tasks: dict[str, Task] = {}
        self.clips: dict[str, tuple[Task, Clip]] = {}
        self.rng = random.Random(options.seed)  # noqa: S311 - faults by chance, not secrets
        self.trigger_counts: Counter[str] = Counter()
        """How often each limited fault has met the submits of one callback URL."""
        self.first_seen: dict[str, float] = {}
        self.stopping = asyncio.Event()

    def add(self, task: Task) -> None:
        """Make the task and its clips known."""
        self.tasks[task.id] = task
        self.clips |= {clip.id: (task, clip) for clip in task.clips}

    def stop(self) -> None:
        """Let everything go on that waits."""
        self.stopping.set()
        for task in self.tasks.values():
            task.first_callback_sent.set()

    async def sleep(self, seconds: float | None) -> None:
        """Wait this long (None: for ever), or until the sandbox stops."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return


def is_exhausted(limit: float | None, trigger_counts: Counter[str], key: str) -> bool:
    """Count one more stroke of a fault; whether it has struck as often as it may."""
    trigger_counts[key] += 1
    return limit is not None and trigger_counts[key] > limit


def now() -> float:
    """The clock of everything the sandbox times; the same for every process of one machine."""
    return time.monotonic()


def new_id() -> str:
    """Ids are 32 hex digits, and new in each run whatever the seed: callers keep the old ones."""
    return uuid.uuid4().hex
