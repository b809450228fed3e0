"""Budgets and usage as callers see them."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from math import isclose
from typing import Annotated

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.budgets.limits import MAX_CREDITS, THOUSANDTHS
from app.enums import EntryKind, Scope, Window
from app.models import ApiKey, LedgerEntry
from app.web import Moment, StrictModel, Text
from app.web.fields import EXAMPLE_KEY_ID, EXAMPLE_TASK_ID
from app.web.pagination import Cursor, Limit, NextCursor

# In place of a key's id: all keys, one after the other.
ALL_KEYS = "*"
Since = Annotated[
    Moment | SkipJsonSchema[None],
    Query(description="Only what was at or after this time (RFC 3339).", examples=["2026-01-01T00:00:00Z"]),
]
Until = Annotated[
    Moment | SkipJsonSchema[None],
    Query(description="Only what was before this time (RFC 3339).", examples=["2026-02-01T00:00:00Z"]),
]
KeyId = Annotated[str, Path(description="The `id` of a key.", examples=[EXAMPLE_KEY_ID])]


def _thousandths(credits_: float) -> float:
    # A product of doubles is off by one unit in the last place or two.
    if not isclose(credits_ * THOUSANDTHS, round(credits_ * THOUSANDTHS), rel_tol=1e-15):
        raise ValueError("must have at most three decimals")
    return credits_


Limited = Annotated[
    float,
    Field(ge=0, le=MAX_CREDITS, json_schema_extra={"multipleOf": 1 / THOUSANDTHS}),
    AfterValidator(_thousandths),
]


class By(StrEnum):
    """What usage is told by. `day`: each day in UTC."""

    day = "day"


class UsageFilters(BaseModel):
    """Which tasks to count, and how to tell it."""

    since: Since = None
    until: Until = None
    by: By | SkipJsonSchema[None] = Field(
        default=None, description="Count each day in UTC by itself; left out, all days together.", examples=["day"]
    )
    key: Text | SkipJsonSchema[None] = Field(
        default=None,
        description="For admins: the key with this `id` instead of your own, or `*` for all keys.",
        examples=[EXAMPLE_KEY_ID],
    )
    limit: Limit = 50
    cursor: Cursor = None


class Usage(BaseModel):
    """How many tasks a key created in a time range, and what they cost. Erased tasks are included."""

    tasks: int = Field(description="How many tasks were created.", examples=[128])
    posts: int = Field(
        description="How many submit requests were sent to the upstream for these tasks; more than one for a task"
        " whose submit was refused and repeated.",
        examples=[130],
    )
    charged: int = Field(description="How many of the tasks the upstream charges for.", examples=[120])
    refunded: int = Field(description="How many of the tasks were charged and refunded.", examples=[3])
    possible: int = Field(
        description="How many of the tasks may be charged: their submit's answer was lost.", examples=[1]
    )


class UsageOfDay(Usage):
    """How many tasks a key created on one day, and what they cost. Erased tasks are included."""

    day: date = Field(description="The day in UTC.", examples=["2026-01-31"])
    key: str | SkipJsonSchema[None] = Field(
        default=None,
        description="The `id` of the key, where `key` was asked for; else absent.",
        examples=[EXAMPLE_KEY_ID],
    )


class UsagePage(BaseModel):
    """One page of days on which tasks were created, oldest first; of several keys, one key after the other."""

    items: list[UsageOfDay] = Field(description="The days of this page; those without tasks are left out.")
    next_cursor: NextCursor


class BudgetRead(BaseModel):
    """What a key may spend in this window, and what is used of it, in credits."""

    limit: float | None = Field(
        description="What may be spent in each window, in credits; null is no limit.", examples=[500]
    )
    window: Window | None = Field(
        description="For how long the limit is, and for what the numbers are.", examples=["day"]
    )
    spent: float = Field(
        description="The credits that the upstream has charged and kept in this window.", examples=[120]
    )
    reserved: float = Field(
        description="The credits that tasks may cost which are on their way, or whose cost is not known yet.",
        examples=[7.5],
    )
    left: float | None = Field(
        description="The credits that further tasks may cost in this window, never less than 0; null is no limit.",
        examples=[372.5],
    )
    resets_at: datetime | None = Field(
        description="When the next window begins, and nothing is used.", examples=["2026-02-01T00:00:00Z"]
    )


class BudgetWrite(StrictModel):
    """The budget to give to a key."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"limit": 500, "window": "day"}]})

    limit: Limited | None = Field(
        description="What may be spent in each window, in credits with at most three decimals; null is no limit.",
        examples=[500],
    )
    window: Annotated[Window, Field(strict=False)] | None = Field(
        default=None, description="For how long the limit is; null is for each day.", examples=["day"]
    )


class LedgerFilters(BaseModel):
    """Which entries of the ledger to list, and from where."""

    since: Since = None
    until: Until = None
    key: Text | SkipJsonSchema[None] = Field(
        default=None,
        description="For admins: the key with this `id` instead of your own.",
        examples=[EXAMPLE_KEY_ID],
    )
    limit: Limit = 50
    cursor: Cursor = None


class EntryRead(BaseModel):
    """One change of what a key has used."""

    id: str = Field(
        description="The entry's id: a UUIDv7 in 32 hexadecimal digits.", examples=["019a6c1f1f2c7d5e8f60718293a4b5c6"]
    )
    at: datetime = Field(description="When it was written.", examples=["2026-01-31T08:00:00Z"])
    task_id: str | None = Field(
        description="The id of the task that it is about, which may be deleted by now; null where it is about none.",
        examples=[EXAMPLE_TASK_ID],
    )
    kind: EntryKind = Field(description="What the entry says.", examples=["reserve"])
    credits: float = Field(
        description="By how many credits the balance has changed: below 0 for what is taken.", examples=[-2.5]
    )
    balance: float = Field(
        description="The sum of all entries up to this one, in credits: 0 at first, and below it for what was used.",
        examples=[-127.5],
    )


class LedgerPage(BaseModel):
    """One page of entries of the ledger, newest first."""

    items: list[EntryRead] = Field(description="The entries of this page, newest first.")
    next_cursor: NextCursor


class KeyRead(BaseModel):
    """A key of a caller, without what opens the service."""

    id: str = Field(description="The key's id: a UUIDv7 in 32 hexadecimal digits.", examples=[EXAMPLE_KEY_ID])
    name: str = Field(description="Whose key it is.", examples=["web shop"])
    scopes: list[Scope] = Field(description="What the key may do.", examples=[["submit", "read", "webhooks"]])
    weight: int = Field(
        description="Its share of the upstream's rate, from 1 to 100, where several keys have tasks in the queue.",
        examples=[1],
    )
    budget: BudgetRead | None = Field(
        description="What the key may spend, and has spent in this window; null is no limit."
    )
    created_at: datetime = Field(description="When the key was created.", examples=["2026-01-20T08:00:00Z"])
    expires_at: datetime | None = Field(
        description="From when on the key is refused; null is never.", examples=["2026-12-31T00:00:00Z"]
    )
    last_used_at: datetime | None = Field(
        description="When the key was last used, to the minute; null if it never was.",
        examples=["2026-01-31T08:00:00Z"],
    )
    revoked_at: datetime | None = Field(
        description="When the key was revoked; null while it is not.", examples=["2026-01-31T08:00:00Z"]
    )


class KeyPage(BaseModel):
    """One page of keys, oldest first."""

    items: list[KeyRead] = Field(description="The keys of this page, oldest first.")
    next_cursor: NextCursor


def read_entry(entry: LedgerEntry) -> EntryRead:
    """An entry of the ledger in its caller's shape."""
    return EntryRead(
        id=entry.id,
        at=entry.created_at,
        task_id=entry.task_id,
        kind=entry.kind,
        credits=entry.credits / THOUSANDTHS,
        balance=entry.balance / THOUSANDTHS,
    )


def read_key(key: ApiKey, budget: BudgetRead) -> KeyRead:
    """A key in the shape that admins see."""
    same = {"id", "name", "weight", "created_at", "expires_at", "last_used_at", "revoked_at"}
    granted = {*key.scopes.split(","), *([Scope.admin] if key.is_admin else [])}
    return KeyRead(
        **{name: getattr(key, name) for name in same},
        scopes=[scope for scope in Scope if scope in granted],
        budget=None if budget.limit is None else budget,
    )
