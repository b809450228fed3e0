"""Where webhooks go, and each webhook with its attempts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from app.database.base import ID_LENGTH, MANY_UPDATED_ROWS, Base, Due, new_id
from app.enums import (
    DeliveryStatus,
    DisabledBy,
    Sweep,
    WebhookType,
)


class WebhookEndpoint(Base):
    """A URL that gets webhooks about all tasks of a key. Deleted endpoints stay until their deliveries are erased."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index(None, "api_key_id", "id"),
        Index(
            "ix_webhook_endpoints_sweep",
            "id",
            postgresql_where=text("sweep IS NOT NULL"),
            sqlite_where=text("sweep IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    url: Mapped[str]
    # Null means all types, those of later releases too.
    event_types: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    description: Mapped[str | None]
    secret_generation: Mapped[int] = mapped_column(default=0)
    secret_rotated_at: Mapped[datetime | None]
    secret_key: Mapped[str | None] = mapped_column(String(8))
    # Sent with each attempt: encrypted, with the fingerprint of the key that did it. Their names are shown.
    headers: Mapped[bytes | None] = mapped_column(LargeBinary)
    headers_key: Mapped[str | None] = mapped_column(String(8))
    header_names: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    # At most so many attempts in any window of so many seconds, as "10/1"; and until when that lets none through.
    rate: Mapped[str | None] = mapped_column(String(32))
    full_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_by: Mapped[DisabledBy | None]
    # A change of its deliveries that is not complete: of those created up to `sweep_until`, and after `sweep_since`
    # or with it and an id after `sweep_after`.
    sweep: Mapped[Sweep | None]
    sweep_since: Mapped[datetime | None]
    sweep_after: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    sweep_until: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class EndpointSend(Base):
    """
    One attempt that counts in the window of its endpoint's rate: while it is under way, and a window from then on.

    `ended_at` is when its response came; before that, when its claim lapses.
    """

    __tablename__ = "endpoint_sends"
    __table_args__ = (Index(None, "endpoint_id", "ended_at"),)

    # The claimed delivery and the fence of its claim.
    delivery_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    fence: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    ended_at: Mapped[datetime]


class Delivery(Due, Base):
    """One webhook to one URL. Its body is stored, so that every attempt sends the same bytes."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    task_id: Mapped[str | None] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    # No foreign key: `webhook.test` and `endpoint.disabled` are no events of a task.
    event_id: Mapped[str] = mapped_column(String(ID_LENGTH))
    event_type: Mapped[WebhookType]
    url: Mapped[str]
    # Digests of the URL's host and of the receiver, which is an endpoint or a URL without its query. Each receiver has
    # its own lane: a slow one delays no other.
    host: Mapped[str] = mapped_column(String(ID_LENGTH))
    lane: Mapped[str] = mapped_column(String(ID_LENGTH))
    # Whether it is due and stands in its lane, which claims look at. Others are found by their due time.
    is_ready: Mapped[bool] = mapped_column(default=False)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[DeliveryStatus] = mapped_column(default=DeliveryStatus.pending)
    # Counts every attempt; `attempts`, which claims count, restarts when the delivery is resent.
    attempts_made: Mapped[int] = mapped_column(default=0)
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index | Mapping[str, Any], ...]:
        no_task, waits = cls.task_id.is_(None), cls.due_at.isnot(None) & ~cls.is_ready
        lanes = "api_key_id", "host", "lane", "due_at"
        missed = text("delivered_at IS NULL")
        by_age = "endpoint_id", "created_at", "id"
        return (
            Index("ix_deliveries_undelivered", *by_age, postgresql_where=missed, sqlite_where=missed),
            Index("ix_deliveries_due", "due_at", postgresql_where=waits, sqlite_where=waits),
            Index("ix_deliveries_ready", *lanes, postgresql_where=cls.is_ready, sqlite_where=cls.is_ready),
            Index(None, "api_key_id", "id"),
            Index(None, "api_key_id", "status", "id"),
            Index(None, "endpoint_id", "id"),
            Index(None, "task_id", "id"),
            # Those that retention deletes by themselves.
            Index("ix_deliveries_without_task", "created_at", postgresql_where=no_task, sqlite_where=no_task),
            {"postgresql_with": MANY_UPDATED_ROWS},
        )


class DeliveryAttempt(Base):
    """One HTTP attempt of a delivery, and its result."""

    __tablename__ = "delivery_attempts"
    __table_args__ = (Index(None, "delivery_id", "attempted_at", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"))
    attempted_at: Mapped[datetime]
    duration_ms: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    # The beginning of the response's body.
    response: Mapped[str | None]
