"""The account that the API key belongs to: its credits, its rate limit and its outages."""

import math
from collections import deque
from typing import Literal

PRICE = 2.5

Outage = Literal["credits", "key", "maintenance"]


class Account:
    """Times are seconds of one monotonic clock and are passed in."""

    def __init__(self, credits_left: float) -> None:
        self._credits = credits_left
        self._admitted: deque[float] = deque()
        self._until: dict[Outage, float] = {}

    def try_acquire(self, now: float, rate: int, period: float) -> bool:
        """Count a request if it fits into the sliding window; refused requests do not count."""
        while self._admitted and self._admitted[0] <= now - period:
            self._admitted.popleft()
        if len(self._admitted) >= rate:
            return False
        self._admitted.append(now)
        return True

    def balance(self, now: float) -> float:
        """The credits that can be spent."""
        return 0.0 if self.has_outage(now, "credits") else self._credits

    def charge(self, now: float) -> bool:
        """Take the price of one task; take nothing and return False if the credits do not suffice."""
        if self.balance(now) < PRICE:
            return False
        self._credits -= PRICE
        return True

    def refund(self) -> None:
        """Give back the price of one task."""
        self._credits += PRICE

    def set_credits(self, amount: float) -> None:
        """Set the credits; ends an outage of the kind `credits`."""
        self._credits = amount
        self._until.pop("credits", None)

    def start_outage(self, outage: Outage, now: float, seconds: float | None) -> None:
        """Start an outage of this many seconds; None: until `end_outage`."""
        self._until[outage] = math.inf if seconds is None else now + seconds

    def end_outage(self, outage: Outage) -> None:
        """End an outage."""
        self._until.pop(outage, None)

    def has_outage(self, now: float, outage: Outage) -> bool:
        """Whether this outage is under way."""
        return now < self._until.get(outage, -math.inf)
