"""What a check of the service finds, in the words that readiness and `soundpost doctor` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

State = Literal["ok", "degraded", "down"]


class Check(BaseModel):
    """The state of one thing that the service needs."""

    status: State = Field(
        description="`ok`; `degraded`, if some work waits; or `down`, if no request can be accepted.", examples=["ok"]
    )
    detail: str = Field(
        description="What was found, and what to do about it.",
        examples=["overdue: 12 tasks; does a worker run? Start `soundpost worker`, or `serve` without --no-loops"],
    )


class Skipped(Exception):
    """There is nothing to check, because of what another check has found; the message names that."""


def worst(checks: Mapping[str, Check]) -> State:
    """The worst status of these checks."""
    found = {check.status for check in checks.values()}
    return "down" if "down" in found else "degraded" if "degraded" in found else "ok"
