"""Budgets as callers see them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from app.enums import Window


class BudgetRead(BaseModel):
    """What a key may spend in this window, and what is used of it, in credits."""

    limit: float | None = Field(description="What may be spent in each window; null is no limit.", examples=[500])
    window: Window | None = Field(
        description="For how long the limit is, and for what the numbers are.", examples=["day"]
    )
    spent: float = Field(description="What the upstream has charged and kept in this window.", examples=[120])
    reserved: float = Field(
        description="What tasks of this window may cost that are on their way, or whose cost is not known yet.",
        examples=[7.5],
    )
    left: float | None = Field(
        description="What further tasks may cost in this window, never less than 0; null is no limit.",
        examples=[372.5],
    )
    resets_at: datetime | None = Field(
        description="When the next window begins, and nothing is used.", examples=["2026-02-01T00:00:00Z"]
    )
