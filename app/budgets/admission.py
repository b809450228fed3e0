"""Admitting orders: whether a key's budget has room for each, decided under the lock of its account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from math import ceil
from typing import Literal, NamedTuple

from sqlalchemy import orm

from app.budgets.ledger import Account, lock_accounts, look_at_held, read_budget, write_accounts
from app.budgets.schemas import BudgetRead
from app.database.engine import Session
from app.enums import WebhookType
from app.errors import BudgetExceeded

W = WebhookType
BudgetWebhookType = Literal[W.budget_low, W.budget_exhausted]
# When a task is reserved by the ledger of its key; None is that it is held; or why it is refused.
Verdict = datetime | BudgetExceeded | None


class Wanted(NamedTuple):
    """What an order may cost, in thousandths of credits, and whether it may wait for room."""

    api_key_id: str
    price: int
    may_wait: bool


class Notice(NamedTuple):
    """What a key is to be told of its budget."""

    api_key_id: str
    kind: BudgetWebhookType
    budget: BudgetRead


async def admit(
    session: Session, wanted: Sequence[Wanted], now: datetime, cheapest: int
) -> tuple[Sequence[Verdict], Sequence[Notice]]:
    """
    Decide about each of these orders in turn, and hold the locks that keep it true until the commit.

    Whoever calls it writes the reservations of those that are admitted. `cheapest` is what an order costs at least.
    """
    return await session.run_sync(_admit, wanted, now, cheapest)


def _admit(
    session: orm.Session, wanted: Sequence[Wanted], now: datetime, cheapest: int
) -> tuple[Sequence[Verdict], Sequence[Notice]]:
    locked = lock_accounts(session, {each.api_key_id for each in wanted})
    # As they will be with what is admitted here.
    accounts = {each.api_key_id: replace(locked[each.api_key_id]) for each in wanted}
    moments = {key_id: account.begin_window(now) for key_id, account in accounts.items()}
    verdicts = [_decide(accounts[each.api_key_id], each, moments[each.api_key_id]) for each in wanted]
    for key_id in {each.api_key_id for each, verdict in zip(wanted, verdicts, strict=True) if verdict is None}:
        look_at_held(session, accounts[key_id].resets_at)
    return verdicts, _notices(session, locked, accounts, moments, cheapest)


def _decide(account: Account, wanted: Wanted, moment: datetime) -> Verdict:
    if account.has_room_for(wanted.price):
        account.reserved += wanted.price
        return moment
    return None if wanted.may_wait else _refusal(account, moment)


def _refusal(account: Account, moment: datetime) -> BudgetExceeded:
    budget, wait = read_budget(account, moment), account.resets_at - moment
    return BudgetExceeded(
        headers={"Retry-After": str(max(1, ceil(wait.total_seconds())))},
        limit=budget.limit,
        spent=budget.spent,
        reserved=budget.reserved,
        resets_at=budget.model_dump(mode="json")["resets_at"],
    )


def _notices(
    session: orm.Session,
    locked: Mapping[str, Account],
    accounts: Mapping[str, Account],
    moments: Mapping[str, datetime],
    cheapest: int,
) -> Sequence[Notice]:
    """What is to be told of these accounts, each once in a window; that it is told is noted."""
    notices = list[Notice]()
    for key_id, account in accounts.items():
        is_new: dict[BudgetWebhookType, bool] = {
            W.budget_low: account.is_low_now() and not account.is_low,
            W.budget_exhausted: account.is_exhausted_now(cheapest) and not account.is_exhausted,
        }
        if any(is_new.values()):
            told = locked[key_id]
            told.begin_window(moments[key_id])
            told.is_low = told.is_low or is_new[W.budget_low]
            told.is_exhausted = told.is_exhausted or is_new[W.budget_exhausted]
            write_accounts(session, [told])
            budget = read_budget(account, moments[key_id])
            notices += [Notice(key_id, kind, budget) for kind, is_due in is_new.items() if is_due]
    return notices
