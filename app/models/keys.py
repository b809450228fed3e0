"""API keys of callers, and what is counted and kept by key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, String, and_, or_
from sqlalchemy.orm import Mapped, mapped_column

from app.database.base import ID_LENGTH, Base, CurrentTime, new_id
from app.enums import Scope

DEFAULT_SCOPES = ",".join((Scope.submit, Scope.read, Scope.webhooks))


class ApiKey(Base):
    """An API key of a caller, stored as its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(100))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    # The scope `admin`; `scopes` holds the others, separated by commas.
    is_admin: Mapped[bool] = mapped_column(default=False)
    scopes: Mapped[str] = mapped_column(String(64), default=DEFAULT_SCOPES)
    # Its share of the upstream's rate where several keys have tasks in the queue.
    weight: Mapped[int] = mapped_column(default=1)
    # SOUNDPOST_API_KEYS lists the key, or did when a service started last: then `is_delisted`, and revoked until it is
    # listed again.
    is_configured: Mapped[bool] = mapped_column(default=False)
    is_delisted: Mapped[bool] = mapped_column(default=False)
    # The secret derived for this generation signs webhooks to the `webhook_url` of the key's tasks.
    secret_generation: Mapped[int] = mapped_column(default=0)
    secret_rotated_at: Mapped[datetime | None]
    # The fingerprint of the secret key that the secret was made with; null until it was first given out.
    secret_key: Mapped[str | None] = mapped_column(String(8))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    # To the minute.
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    @classmethod
    def works(cls) -> ColumnElement[bool]:
        """Whether a key opens the service now: it is neither revoked nor expired."""
        return and_(cls.revoked_at.is_(None), or_(cls.expires_at.is_(None), cls.expires_at > CurrentTime()))


class AuditEntry(Base):
    """One change that a key or an operator made: written with it, and never changed."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    created_at: Mapped[datetime]
    # The id of a key, or OPERATOR.
    actor: Mapped[str] = mapped_column(String(ID_LENGTH))
    action: Mapped[str] = mapped_column(String(64))
    # What was changed: the id of a key, a task, an endpoint; null for all.
    target: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class FormerKey(Base):
    """A key that was replaced by a rotation, stored as its SHA-256. It never becomes another caller's."""

    __tablename__ = "former_keys"

    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    works_until: Mapped[datetime]


class RateLimitHit(Base):
    """A new task that counts against its key's rate limit; deleted after the window."""

    __tablename__ = "rate_limit_hits"
    __table_args__ = (Index(None, "api_key_id", "made_at"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    made_at: Mapped[datetime]


class IdempotencyKey(Base):
    """The task that was created with a caller's Idempotency-Key."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    # The SHA-256 of the normalised body.
    fingerprint: Mapped[str] = mapped_column(String(64))
    task_id: Mapped[str] = mapped_column(String(ID_LENGTH))
    created_at: Mapped[datetime]
