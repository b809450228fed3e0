"""Tasks, and what belongs to one: clips with their files, callbacks and events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, declared_attr, mapped_column, relationship

from app.database.base import ID_LENGTH, MANY_UPDATED_ROWS, Base, Due, Ordered, due_index, new_id
from app.egress.rules import authority_of
from app.enums import (
    CallbackOutcome,
    EntryKind,
    ErrorCode,
    EventType,
    Priority,
    ResolvedBy,
    TaskStatus,
)
from app.models.usage import Counted, uncounted_index

STORAGE_KEY_LENGTH = 100


class Task(Due, Counted, Base):
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
    priority: Mapped[Priority] = mapped_column(Ordered(Priority), default=Priority.normal)
    webhook_url: Mapped[str | None]
    # The `callBackUrl` of a task from the drop-in API, which gets callbacks in the vendor's format.
    callback_url: Mapped[str | None]
    labels: Mapped[dict[str, str]] = mapped_column("metadata")
    upstream_task_id: Mapped[str | None] = mapped_column(String(200))
    resolved_by: Mapped[ResolvedBy | None]
    was_unconfirmed: Mapped[bool] = mapped_column(default=False)
    error_code: Mapped[ErrorCode | None]
    error_message: Mapped[str | None]
    upstream_code: Mapped[int | None] = mapped_column(BigInteger)
    # Polls that saw success without an audio URL.
    audio_checks: Mapped[int] = mapped_column(default=0)
    # The last submits and polls, oldest first: `kind`, `started_at`, `duration_ms` and `outcome` of each.
    upstream_calls: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    # The W3C trace context of the request that created the task, which continues in callbacks and webhooks.
    trace_context: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    # The SHA-256 of what it is to sound like, by which an equal one is found; and of the whole order, where its id is
    # its caller's.
    sound_digest: Mapped[str] = mapped_column(String(64), default="")
    order_digest: Mapped[str | None] = mapped_column(String(64))
    # Thousandths of credits, what the ledger says of them last, and when they were reserved: in that window they count.
    # A queued task without an entry is held until its key's budget has room: it is not due.
    price: Mapped[int] = mapped_column(BigInteger, default=0)
    booked: Mapped[EntryKind | None]
    reserved_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]
    # The foreign key deletes the clips of a deleted task; without "all" the session would first clear their task_id.
    clips: Mapped[list[Clip]] = relationship(order_by="Clip.index", lazy="selectin", passive_deletes="all")

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index | Mapping[str, Any], ...]:
        resolved, succeeded = text("resolved_by IS NOT NULL"), text("status = 'succeeded'")
        queued, held = (text(f"status = 'queued' AND due_at IS {null}") for null in ("NOT NULL", "NULL"))
        return (
            # Workers claim by status: polls must not scan the queue, however long it is.
            due_index(cls.__tablename__, cls, "status", "due_at", "id"),
            Index(None, "created_at", "id"),
            uncounted_index(cls.__tablename__, cls),
            # The last two are what usage adds up of a part of an hour, which so reads the index alone.
            Index(None, "api_key_id", "created_at", "id", "charge", "posts"),
            Index(None, "api_key_id", "status", "created_at", "id"),
            Index(None, "api_key_id", "model", "created_at", "id"),
            # What is next of each key, and what waits for its budget.
            Index(
                "ix_tasks_queue", "api_key_id", "priority", "due_at", "id", postgresql_where=queued, sqlite_where=queued
            ),
            Index("ix_tasks_held", "api_key_id", "priority", "id", postgresql_where=held, sqlite_where=held),
            Index(
                "ix_tasks_reusable",
                *("api_key_id", "sound_digest", "completed_at"),
                postgresql_where=succeeded,
                sqlite_where=succeeded,
            ),
            Index(None, "completed_at"),
            # The latest tasks to be resolved, however many were canceled since.
            Index("ix_tasks_resolved", "completed_at", postgresql_where=resolved, sqlite_where=resolved),
            {"postgresql_with": MANY_UPDATED_ROWS},
        )


class TaskLabel(Base):
    """One of a task's labels, by which tasks are searched for: written with the task, and never changed."""

    __tablename__ = "task_labels"
    # A search reads the label's tasks alone, newest first.
    __table_args__ = (Index(None, "api_key_id", "name", "value", "created_at", "task_id"),)

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))
    api_key_id: Mapped[str] = mapped_column(String(ID_LENGTH))
    created_at: Mapped[datetime]  # Of the task.


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
    # When the download began that was stored.
    archive_started_at: Mapped[datetime | None]
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
