"""Waiting for what happens in another task, thread or process."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 10) -> None:
    """Return once the condition is true; raises AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        outcome = condition()
        if outcome if isinstance(outcome, bool) else await outcome:
            return
        assert time.monotonic() < deadline, "the condition did not become true"
        await asyncio.sleep(0.02)


def eventually_blocking(condition: Callable[[], bool], within: float = 5) -> None:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
