"""Keys, budgets and the audit log: what keys may spend and have spent, and for admins who may what and changed what."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import ValidationError

from app.auth import audit
from app.budgets.schemas import BudgetWrite, LedgerFilters, UsageFilters, read_entry
from app.budgets.service import BudgetService
from app.console.accounts.repository import read_account
from app.console.mount import PATH
from app.console.rendering import PagesDep
from app.console.repository import names_of_keys
from app.console.session import AdminVisitor, FormDep, ReadVisitor, Refused, Visitor
from app.database.engine import Database
from app.enums import Window
from app.errors import NotFound
from app.web.pagination import bad_cursor, decode_time_cursor, encode_cursor
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(prefix=PATH)
KEYS, AUDIT = f"{PATH}/keys", f"{PATH}/audit"
# Of keys, of entries of a ledger and of the audit log; and the days that usage is told of.
PAGE_SIZE, DAYS = 25, 31
BudgetsDep = Annotated[BudgetService, provided(BudgetService)]


@router.get("/budget")
async def show_budget(
    request: Request, pages: PagesDep, visitor: ReadVisitor, budgets: BudgetsDep, database: DatabaseDep
) -> Response:
    """What the visitor's own key may spend and has spent."""
    values = await _read_account(request, visitor, budgets, database, visitor.caller.api_key_id)
    return pages.render(request, "account.html", is_own=True, **values)


@router.get("/keys")
async def show_keys(
    request: Request, pages: PagesDep, visitor: AdminVisitor, budgets: BudgetsDep, database: DatabaseDep
) -> Response:
    """All keys, oldest first; for admins. Raises NotPermitted."""
    after = decode_time_cursor(request, request.query_params.get("cursor"))
    found = await budgets.list_keys(visitor.caller, after, PAGE_SIZE + 1)
    keys = found[:PAGE_SIZE]
    cursor = encode_cursor(KEYS, keys[-1].created_at.isoformat(), keys[-1].id) if len(found) > PAGE_SIZE else ""
    async with database.reads() as session:
        now = await database.now(session)
    return pages.render(request, "keys.html", keys=keys, next_cursor=cursor, is_first=after is None, now=now)


@router.get("/keys/{key_id}")
async def show_key(
    request: Request, pages: PagesDep, visitor: AdminVisitor, budgets: BudgetsDep, database: DatabaseDep, key_id: str
) -> Response:
    """One key with its account; for admins. Raises NotFound, NotPermitted."""
    values = await _read_account(request, visitor, budgets, database, key_id)
    return pages.render(request, "account.html", is_own=False, **values)


@router.post("/keys/{key_id}/budget")
async def set_budget(
    pages: PagesDep, visitor: AdminVisitor, form: FormDep, budgets: BudgetsDep, key_id: str
) -> Response:
    """Give a key another budget, or none; for admins. Raises NotFound, NotPermitted."""
    limit = form.get("limit", "").strip()
    try:
        wanted = BudgetWrite(limit=float(limit) if limit else None, window=Window(form.get("window", Window.day)))
    except (ValidationError, ValueError):
        raise Refused(
            422, "This is no budget", "Give credits with at most three decimals, 0 or more, for each day or month."
        ) from None
    await budgets.set_budget(visitor.caller, key_id, wanted)
    return pages.redirect(f"{KEYS}/{key_id}", "The budget is changed." if limit else "The key has no limit any more.")


@router.get("/audit")
async def show_audit(request: Request, pages: PagesDep, visitor: AdminVisitor, database: DatabaseDep) -> Response:
    """What keys and operators have changed, newest first; for admins. Raises NotPermitted."""
    before = decode_time_cursor(request, request.query_params.get("cursor"))
    async with database.reads() as session:
        found = await audit.list_entries(session, None, None, before, PAGE_SIZE + 1)
        entries = found[:PAGE_SIZE]
        named = {id_ for entry in entries for id_ in (entry.actor, entry.target) if id_}
        names, now = await names_of_keys(session, named), await database.now(session)
    cursor = encode_cursor(AUDIT, entries[-1].created_at.isoformat(), entries[-1].id) if len(found) > PAGE_SIZE else ""
    return pages.render(
        request, "audit.html", entries=entries, names=names, next_cursor=cursor, is_first=before is None, now=now
    )


async def _read_account(
    request: Request, visitor: Visitor, budgets: BudgetService, database: Database, key_id: str
) -> dict[str, Any]:
    """
    The values of the page of an account. Raises InvalidRequest, NotFound.

    The page shows ledger and usage only to who may read what belongs to all keys.
    """
    before = None
    if (position := decode_time_cursor(request, request.query_params.get("cursor"))) is not None:
        if not position[1].isdecimal() or len(position[1]) > 18:
            raise bad_cursor()
        before = position[0], int(position[1])
    async with database.reads() as session:
        now = await database.now(session)
        account = await read_account(session, key_id, now)
    if account is None:
        raise NotFound
    key, budget = account
    found = await budgets.list_entries(visitor.caller, LedgerFilters(key=key_id), before, PAGE_SIZE + 1)
    entries = found[:PAGE_SIZE]
    last = entries[-1] if len(found) > PAGE_SIZE else None
    since = (now - timedelta(days=DAYS - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    of_days = UsageFilters.model_validate({"since": since.isoformat(), "key": key_id})
    days = [day async for batch in budgets.usage_by_day(visitor.caller, of_days) for _, day in batch]
    return {
        "key": key,
        "budget": budget,
        "entries": [read_entry(entry) for entry in entries],
        "next_cursor": encode_cursor(request.url.path, last.created_at.isoformat(), str(last.number)) if last else "",
        "is_first": before is None,
        "days": days[::-1],
        "now": now,
    }
