"""What keys may use and have used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import date, datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from app.auth.callers import AdminCaller, Caller, ReadCaller
from app.budgets.exports import CSV, csv_lines
from app.budgets.schemas import (
    BudgetRead,
    BudgetWrite,
    KeyId,
    KeyPage,
    LedgerFilters,
    LedgerPage,
    Usage,
    UsageFilters,
    UsageOfDay,
    UsagePage,
    read_entry,
)
from app.budgets.service import BudgetService
from app.errors import NotFound, NotPermitted
from app.web.negotiation import prefers
from app.web.pagination import PAGE, Cursor, Limit, bad_cursor, decode_cursor, decode_time_cursor, next_page
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router

router = Router(prefix="/v1")
BudgetsDep = Annotated[BudgetService, provided(BudgetService)]
# Of an entry's number.
MAX_DIGITS = 18
VARY = {"Vary": "Accept"}
USAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The sums; with `by=day` one page of days; or, with `Accept: text/csv`, a table with a line of"
        " names (RFC 4180), which has all days, whatever `limit` and `cursor` say.",
        "content": {
            CSV: {
                "schema": {"type": "string"},
                "example": "day,tasks,posts,charged,refunded,possible\r\n2026-01-31,128,130,120,3,1\r\n",
            }
        },
        **PAGE[200],
    },
    **problem_responses(NotPermitted, NotFound),
}


@router.get("/budget", tags=["account"], operation_id="getBudget", summary="Get your budget")
async def get_budget(budgets: BudgetsDep, caller: ReadCaller) -> BudgetRead:
    """
    Get what this key may spend in this window, and what is used of it.

    Without a limit, `spent` and `reserved` are those of this day in UTC.
    """
    return await budgets.budget(caller)


@router.get(
    "/ledger",
    tags=["account"],
    operation_id="listLedger",
    summary="List the ledger",
    responses={**PAGE, **problem_responses(NotPermitted, NotFound)},
)
async def list_ledger(
    request: Request,
    response: Response,
    budgets: BudgetsDep,
    caller: ReadCaller,
    wanted: Annotated[LedgerFilters, Query()],
) -> LedgerPage:
    """
    List what was reserved, charged and given back for this key's tasks, newest first.

    Entries never change, and stay when their task is deleted.
    """
    found = await budgets.list_entries(caller, wanted, _entry_before(request, wanted.cursor), wanted.limit + 1)
    page, following = next_page(
        request, response, found, wanted.limit, lambda entry: (entry.created_at.isoformat(), str(entry.number))
    )
    return LedgerPage(items=[read_entry(entry) for entry in page], next_cursor=following)


@router.get(
    "/keys",
    tags=["admin"],
    operation_id="listKeys",
    summary="List all keys",
    responses={**PAGE, **problem_responses(NotPermitted)},
)
async def list_keys(
    request: Request,
    response: Response,
    budgets: BudgetsDep,
    caller: AdminCaller,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> KeyPage:
    """List the keys of all callers with their budgets, oldest first; for admins."""
    found = await budgets.list_keys(caller, decode_time_cursor(request, cursor), limit + 1)
    page, following = next_page(request, response, found, limit, lambda key: (key.created_at.isoformat(), key.id))
    return KeyPage(items=list(page), next_cursor=following)


@router.put(
    "/keys/{key_id}/budget",
    tags=["admin"],
    operation_id="setKeyBudget",
    summary="Set a key's budget",
    responses=problem_responses(NotPermitted),
)
async def set_key_budget(budgets: BudgetsDep, caller: AdminCaller, key_id: KeyId, body: BudgetWrite) -> BudgetRead:
    """
    Give a key a budget, another one, or none; for admins.

    What the key has used in the current window counts. Tasks that are held for the budget go on
    where there is room now.
    """
    return await budgets.set_budget(caller, key_id, body)


@router.get(
    "/usage",
    tags=["account"],
    operation_id="getUsage",
    summary="Get your usage",
    response_model=Usage | UsagePage,
    response_model_exclude_unset=True,
    responses=USAGE,
)
async def get_usage(
    request: Request,
    response: Response,
    budgets: BudgetsDep,
    caller: ReadCaller,
    wanted: Annotated[UsageFilters, Query()],
) -> Usage | UsagePage | Response:
    """
    Count this key's tasks in a time range and what they cost, in all or by day.

    Tasks that are deleted and older than the retention are kept as sums: they count by
    the beginning of their hour in UTC.
    """
    is_table = prefers(request.headers.getlist("accept"), CSV, "application/json")
    response.headers.update(VARY)
    if wanted.by is None:
        usage = await budgets.usage(caller, wanted)
        return await _table(list(Usage.model_fields), _once(usage)) if is_table else usage
    if is_table:
        named = ("key",) if wanted.key is not None else ()
        return await _table(["day", *named, *Usage.model_fields], _all_days(budgets, caller, wanted))
    found: list[tuple[str, UsageOfDay]] = []
    async for days in budgets.usage_by_day(caller, wanted, _day_after(request, wanted.cursor)):
        found += days
        if len(found) > wanted.limit:
            break
    page, following = next_page(request, response, found, wanted.limit, lambda each: (each[0], each[1].day.isoformat()))
    return UsagePage(items=[day for _, day in page], next_cursor=following)


async def _table(names: Sequence[str], pages: AsyncIterator[Sequence[Usage]]) -> Response:
    lines = csv_lines(names, pages)
    # What fails before the first line can still be told.
    first = await anext(lines)

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for more in lines:
            yield more

    return StreamingResponse(all_lines(), headers=VARY, media_type=CSV)


async def _once(usage: Usage) -> AsyncIterator[Sequence[Usage]]:
    yield [usage]


async def _all_days(budgets: BudgetService, caller: Caller, wanted: UsageFilters) -> AsyncIterator[Sequence[Usage]]:
    async for days in budgets.usage_by_day(caller, wanted):
        yield [day for _, day in days]


def _day_after(request: Request, cursor: str | None) -> tuple[str, date] | None:
    """The key and day behind which a page begins. Raises InvalidRequest."""
    position = decode_cursor(request, cursor, 2)
    if position is None:
        return None
    try:
        return position[0], date.fromisoformat(position[1])
    except ValueError:
        raise bad_cursor() from None


def _entry_before(request: Request, cursor: str | None) -> tuple[datetime, int] | None:
    """The time and number before which a page begins. Raises InvalidRequest."""
    position = decode_time_cursor(request, cursor)
    if position is None:
        return None
    at, number = position
    if not number.isdecimal() or len(number) > MAX_DIGITS:
        raise bad_cursor()
    return at, int(number)
