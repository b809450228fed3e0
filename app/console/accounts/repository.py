"""What these pages read that no use case of another room gives: one key with its account."""

from __future__ import annotations

from datetime import datetime

from app.budgets.ledger import read_budget
from app.budgets.repository import accounts_of
from app.budgets.schemas import BudgetRead, KeyRead, read_key
from app.database.engine import Session
from app.models import ApiKey


async def read_account(session: Session, key_id: str, now: datetime) -> tuple[KeyRead, BudgetRead] | None:
    """One key, and what it has used in this window, with a limit or without; None if there is no such key."""
    key = await session.get(ApiKey, key_id)
    if key is None:
        return None
    budget = read_budget((await accounts_of(session, [key_id]))[key_id], now)
    return read_key(key, budget), budget
