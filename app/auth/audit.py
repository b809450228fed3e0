"""The audit log: what keys and operators have changed, written in the transaction of the change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app.database.engine import Session
from app.models import AuditEntry

# Who acts where no key does: the operator, by the command line.
OPERATOR = "operator"


def record(session: Session, now: datetime, actor: str, action: str, target: str | None = None, **detail: Any) -> None:
    """
    Write down a change, such as `key.revoked`, of `target` by `actor`: the id of a key, or OPERATOR.

    `detail` says what is new, in values that JSON has, and never holds a secret.
    """
    session.add(AuditEntry(created_at=now, actor=actor, action=action, target=target, detail=detail))
