"""The shape of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.models import AuditEntry
from app.web.pagination import NextCursor

EXAMPLE_ENTRY_ID = "019a6c20b1c27a5f8e9d0c1b2a394857"
EXAMPLE_KEY_ID = "019a6b0e2d1f7c3a9b8c7d6e5f4a3b2c"


class AuditRead(BaseModel):
    """One change that a key or an operator made."""

    id: str = Field(description="The id of the entry.", examples=[EXAMPLE_ENTRY_ID])
    at: datetime = Field(description="When the change was made.", examples=["2026-01-31T08:00:00Z"])
    actor: str = Field(
        description="Who made it: the id of a key, or `operator` for the command line and the settings.",
        examples=["operator"],
    )
    action: str = Field(description="What was done, as in `key.revoked`.", examples=["key.created"])
    target: str | None = Field(
        description="The id of the key, task or endpoint that was changed; null where it was more than one.",
        examples=[EXAMPLE_KEY_ID],
    )
    detail: dict[str, Any] = Field(
        description="What is new about it; never a secret.", examples=[{"name": "shop", "weight": 3}]
    )


class AuditPage(BaseModel):
    """One page of the audit log."""

    items: list[AuditRead] = Field(description="The entries, newest first.")
    next_cursor: NextCursor


def read_entry(entry: AuditEntry) -> AuditRead:
    """An entry as it is shown."""
    return AuditRead(
        id=entry.id,
        at=entry.created_at,
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        detail=entry.detail,
    )
