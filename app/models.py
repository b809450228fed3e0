"""The schema on one page: every table, and which rows fall due."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, declared_attr, mapped_column, relationship

from app.database.base import ID_LENGTH, Base, Due, due_index, new_id
from app.egress.rules import authority_of
from app.enums import (
    CallbackOutcome,
    Charge,
    DeliveryStatus,
    DisabledBy,
    ErrorCode,
    EventType,
    ResolvedBy,
    Sweep,
    TaskStatus,
    WebhookType,
)

STORAGE_KEY_LENGTH = 100
# Storage parameters of PostgreSQL. By default autovacuum waits until a fifth of a table is dead rows: of a million
# tasks that is days of updates. A tenth of each page stays free for the new versions of its rows.
MANY_UPDATED_ROWS = {
    "fillfactor": 90,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_analyze_scale_factor": 0.02,
}
# A few rows, updated several times a second: half of each page stays free, so that their new versions replace the old
# ones within it (HOT), and a few hundred dead ones are enough for autovacuum.
FEW_BUSY_ROWS = {"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 200}


class ApiKey(Base):
    """An API key of a caller, stored as its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(100))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
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
    revoked_at: Mapped[datetime | None]


class FormerKey(Base):
    """A key that was replaced by a rotation, stored as its SHA-256. It never becomes another caller's."""

    __tablename__ = "former_keys"

    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    works_until: Mapped[datetime]


class Task(Due, Base):
    """One request for a sound. Due at the next submit, poll or deadline."""

    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    status: Mapped[TaskStatus] = mapped_column(default=TaskStatus.queued)
    # Rises by one with every change that a caller can see.
    version: Mapped[int] = mapped_column(default=0)
    prompt: Mapped[str]
    model: Mapped[str] = mapped_column(String(64))
    sound_loop: Mapped[bool]
    # In beats per minute.
    sound_tempo: Mapped[int | None]
    sound_key: Mapped[str] = mapped_column(String(8))
    grab_lyrics: Mapped[bool]
    webhook_url: Mapped[str | None]
    # The `callBackUrl` of a task from the drop-in API, which gets callbacks in the vendor's format.
    callback_url: Mapped[str | None]
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON().with_variant(JSONB(), "postgresql"))
    upstream_task_id: Mapped[str | None] = mapped_column(String(200))
    resolved_by: Mapped[ResolvedBy | None]
    was_unconfirmed: Mapped[bool] = mapped_column(default=False)
    error_code: Mapped[ErrorCode | None]
    error_message: Mapped[str | None]
    upstream_code: Mapped[int | None] = mapped_column(BigInteger)
    charge: Mapped[Charge] = mapped_column(default=Charge.none)
    # POSTs of this task to the upstream, without those that provably never left.
    posts: Mapped[int] = mapped_column(default=0)
    # Polls that saw success without an audio URL.
    audio_checks: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    # The foreign key deletes the clips of a deleted task; without "all" the session would first clear their task_id.
    clips: Mapped[list[Clip]] = relationship(order_by="Clip.index", lazy="selectin", passive_deletes="all")

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index | Mapping[str, Any], ...]:
        resolved = text("resolved_by IS NOT NULL")
        return (
            # Workers claim by status: polls must not scan the queue, however long it is.
            due_index(cls.__tablename__, cls, "status", "due_at", "id"),
            Index(None, "created_at", "id"),
            # The last two are what usage adds up, which so reads the index alone.
            Index(None, "api_key_id", "created_at", "id", "charge", "posts"),
            Index(None, "api_key_id", "status", "created_at", "id"),
            Index(None, "completed_at"),
            # The latest tasks to be resolved, however many were canceled since.
            Index("ix_tasks_resolved", "completed_at", postgresql_where=resolved, sqlite_where=resolved),
            # Without the list of pending entries, which every search reads and whose end one order in many pays for.
            Index(
                "ix_tasks_metadata",
                cls.labels,
                postgresql_using="gin",
                postgresql_ops={"metadata": "jsonb_path_ops"},
                postgresql_with={"fastupdate": "off"},
            ).ddl_if(dialect="postgresql"),
            {"postgresql_with": MANY_UPDATED_ROWS},
        )


# The lane of clips about which the upstream is asked first: for a fresh link, or for lyrics.
QUESTIONS = ""


def _first_lane(insert: Any) -> str:
    clip = insert.get_current_parameters()
    return authority_of(clip.get("upstream_audio_url") or clip.get("source_audio_url") or "")


class StoredObject(Due, Base):
    """A file in the storage, shared by equal clips. Due when perhaps no clip refers to it; claimed to be removed."""

    __tablename__ = "stored_objects"

    key: Mapped[str] = mapped_column(String(STORAGE_KEY_LENGTH), primary_key=True)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index, ...]:
        return (due_index(cls.__tablename__, cls, "due_at"),)


class Clip(Due, Base):
    """One audio result of a task. Due while its audio, cover or lyrics are not stored yet."""

    __tablename__ = "clips"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    index: Mapped[int]
    upstream_clip_id: Mapped[str | None]
    title: Mapped[str | None]
    tags: Mapped[str | None]
    # In seconds.
    duration: Mapped[float | None]
    model_name: Mapped[str | None]
    image_url: Mapped[str | None]
    upstream_audio_url: Mapped[str | None]
    source_audio_url: Mapped[str | None]
    content_type: Mapped[str | None] = mapped_column(String(64))
    # In bytes.
    size: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    storage_key: Mapped[str | None] = mapped_column(ForeignKey("stored_objects.key"), index=True)
    archived_at: Mapped[datetime | None]
    archive_error: Mapped[str | None]
    given_up_at: Mapped[datetime | None]
    image_key: Mapped[str | None] = mapped_column(ForeignKey("stored_objects.key"), index=True)
    image_type: Mapped[str | None] = mapped_column(String(64))
    # In bytes.
    image_size: Mapped[int | None]
    image_sha256: Mapped[str | None] = mapped_column(String(64))
    image_archived_at: Mapped[datetime | None]
    lyrics: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    # The host that the next download goes to, or QUESTIONS: a slow host delays its own lane and no other.
    lane: Mapped[str] = mapped_column(default=_first_lane)
    created_at: Mapped[datetime]

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index | UniqueConstraint, ...]:
        return UniqueConstraint("task_id", "index"), due_index(cls.__tablename__, cls, "lane", "attempts", "due_at")


class Callback(Base):
    """A message from the upstream as received, stored in the transaction that applies it. Secrets in it are masked."""

    __tablename__ = "callbacks"
    __table_args__ = (Index(None, "task_id", "received_at", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    # By the database's clock, while the task is locked: the order of the commits, on any replica.
    received_at: Mapped[datetime]
    headers: Mapped[dict[str, str]]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    outcome: Mapped[CallbackOutcome]


class Event(Base):
    """A fact about a task, kept in order; at most one for each version of the task."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("task_id", "version"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    version: Mapped[int]
    type: Mapped[EventType]
    created_at: Mapped[datetime]
    data: Mapped[dict[str, Any]]
    # Never read: it makes the session insert a new task before its first event.
    task: Mapped[Task] = relationship(lazy="raise")


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
            Index(None, "task_id"),
            # Those that retention deletes by themselves.
            Index("ix_deliveries_without_task", "created_at", postgresql_where=no_task, sqlite_where=no_task),
            {"postgresql_with": MANY_UPDATED_ROWS},
        )


class DeliveryAttempt(Base):
    """One HTTP attempt of a delivery, and its result."""

    __tablename__ = "delivery_attempts"
    __table_args__ = (Index(None, "delivery_id", "id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True, default=new_id)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"))
    attempted_at: Mapped[datetime]
    duration_ms: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    # The beginning of the response's body.
    response: Mapped[str | None]


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


class SpentCharge(Base):
    """The charge of a deleted task, kept for usage totals until it is added to those of its day."""

    __tablename__ = "spent_charges"
    __table_args__ = (Index(None, "created_at"), Index(None, "api_key_id", "created_at", "charge", "posts"))

    task_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    charge: Mapped[Charge]
    posts: Mapped[int]
    created_at: Mapped[datetime]  # Of the task.


class DailyCharge(Base):
    """The sums over a key's tasks of one day that are older than the retention."""

    __tablename__ = "daily_charges"

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    day: Mapped[datetime] = mapped_column(primary_key=True)  # Its beginning in UTC.
    charge: Mapped[Charge] = mapped_column(primary_key=True)
    tasks: Mapped[int] = mapped_column(BigInteger)
    posts: Mapped[int] = mapped_column(BigInteger)


class PeriodicJob(Due, Base):
    """Periodic work, or a recheck that is due: a row, so that one replica at a time does it."""

    __tablename__ = "periodic_jobs"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class PaceSlot(Base):
    """One request in any window of the upstream's rate: reserved until `free_at`."""

    __tablename__ = "pace_slots"
    __table_args__ = ({"postgresql_with": FEW_BUSY_ROWS},)

    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    free_at: Mapped[datetime]
    fence: Mapped[str | None] = mapped_column(String(ID_LENGTH))
