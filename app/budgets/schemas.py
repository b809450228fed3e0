"""Budgets and usage as callers see them."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from app.enums import Window
from app.web import Moment, Text
from app.web.fields import EXAMPLE_KEY_ID
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
        description="The credits that may be spent in each window; null is no limit.", examples=[500]
    )
    window: Window | None = Field(
        description="For how long the limit is, and for what the numbers are.", examples=["day"]
    )
    spent: float = Field(
        description="The credits that the upstream has charged and kept in this window.", examples=[120]
    )
    reserved: float = Field(
        description="The credits that tasks of this window may cost which are on their way, or of which it is not known yet.",
        examples=[7.5],
    )
    left: float | None = Field(
        description="The credits that further tasks may cost in this window; null is no limit.",
        examples=[372.5],
    )
    resets_at: datetime | None = Field(
        description="When the next window begins, and nothing is used.", examples=["2026-02-01T00:00:00Z"]
    )
