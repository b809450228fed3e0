"""How much a key may spend, as people write it: 500/day, 2.5/month."""

from __future__ import annotations

import re
from decimal import Decimal

from app.enums import Window

# Credits are stored as thousandths.
THOUSANDTHS = 1000
MAX_CREDITS = 10**9

_BUDGET = re.compile(r"\s*(\d{1,10}(?:\.\d{1,3})?)\s*/\s*(\w+)\s*", re.ASCII)


def parse_budget(value: str) -> tuple[int, Window]:
    """Read `500/day` or `2.5/month`, credits and a window, as thousandths of credits. Raises ValueError."""
    found = _BUDGET.fullmatch(value)
    if found is None or found[2] not in tuple(Window):
        raise ValueError("must be credits, with at most three decimals, and a window, such as 500/day or 2.5/month")
    credit_limit = Decimal(found[1])
    if credit_limit > MAX_CREDITS:
        raise ValueError(f"must be at most {MAX_CREDITS} credits")
    return int(credit_limit * THOUSANDTHS), Window(found[2])
