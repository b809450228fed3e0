"""The account behind the key: its credits, its pace, and the times when it does not work."""

import math
from collections import deque
from typing import Literal

PRICE = 2.5

Outage = Literal["credits", "key", "maintenance"]


class Account:
    """Times are seconds of one monotonic clock, passed in."""

    def __init__(self, credits_left: float) -> None:
        self._credits = credits_left
        self._admitted: deque[float] = deque()
        self._until: dict[Outage, float] = {}

    def try_acquire(self, now: float, rate: int, period: float) -> bool:
        """Whether one more request fits into the window. Refused ones do not count."""
        while self._admitted and self._admitted[0] <= now - period:
            self._admitted.popleft()
        if len(self._admitted) >= rate:
            return False
        self._admitted.append(now)
        return True

    def balance(self, now: float) -> float:
        """Credits that can be spent."""
        return 0.0 if self.has_outage(now, "credits") else self._credits

    def charge(self, now: float) -> bool:
        """Take the price of one task, or nothing if there is too little."""
        if self.balance(now) < PRICE:
            return False
        self._credits -= PRICE
        return True

    def refund(self) -> None:
        """Give the price of one task back."""
        self._credits += PRICE

    def set_credits(self, amount: float) -> None:
        """Replace what is left; ends an outage of credits."""
        self._credits = amount
        self._until.pop("credits", None)

    def stop(self, what: Outage, now: float, seconds: float | None) -> None:
        """Let something not work for a time, or until `end_outage`."""
        self._until[what] = math.inf if seconds is None else now + seconds

    def end_outage(self, what: Outage) -> None:
        """End an outage."""
        self._until.pop(what, None)

    def has_outage(self, now: float, what: Outage) -> bool:
        """Whether this does not work at the moment."""
        return now < self._until.get(what, -math.inf)
