"""A clock that a test moves."""

from datetime import UTC, datetime, timedelta

MORNING = datetime(2026, 3, 1, 8, tzinfo=UTC)


class Clock:
    """A clock for a Database: it stands still until a test advances it."""

    def __init__(self, now: datetime = MORNING) -> None:
        self.now = now
        self.reads = 0

    async def __call__(self, _session: object) -> datetime:
        self.reads += 1
        return self.now

    def advance(self, **span: float) -> None:
        """Move on by the arguments of a timedelta, as in `seconds=5`."""
        self.now += timedelta(**span)
