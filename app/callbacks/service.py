"""Callbacks: the message and its effect on the task are one commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from app.auth.audit import OPERATOR, record
from app.callbacks.repository import STORED_CALLBACKS, callbacks_of, first_callbacks
from app.database.base import ID_LENGTH, new_id
from app.database.engine import Database, Session
from app.database.group_commit import GroupCommit, RowLocked
from app.database.records import RecordSession, record_sessions
from app.enums import CallbackOutcome, ResolvedBy
from app.errors import NotAuthenticated, NotFound
from app.keyring import Keyring
from app.models import Callback, Task
from app.observability.metrics import Metrics
from app.observability.redaction import redact
from app.observability.tracing import record_span
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.locking import lock_free_tasks, write_tasks
from app.tasks.repository import lock_task
from app.upstream.types import Report, Upstream

log = structlog.get_logger()

# Of one task: its callbacks can be repeated without end, and each may have 1 MiB.
MAX_KEPT = 100
UNUSABLE = frozenset({CallbackOutcome.mismatch, CallbackOutcome.unreadable})
HIDDEN_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-webhook-signature"})


# How many callbacks may wait: as many as a process writes in a second, each of up to a MiB. How many a commit holds.
MAX_WAITING = 2_000
MAX_IN_A_COMMIT = 50
# Tasks that are looked up at once to be replayed.
PAGE = 200
# What of a task, and of its clips, a callback can change and an operator looks at.
CHANGEABLE = (
    *("status", "upstream_task_id", "resolved_by", "charge", "error_code", "error_message", "upstream_code"),
    *("submitted_at", "completed_at", "due_at"),
)
OF_CLIPS = ("upstream_clip_id", "title", "tags", "duration", "model_name", "image_url", "upstream_audio_url")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A stored callback that was applied again, and what changed: each field's value before and after."""

    callback_id: str
    task_id: str
    received_at: datetime
    outcome: CallbackOutcome
    changes: Mapping[str, tuple[object, object]]


@dataclass(frozen=True, slots=True)
class _Received:
    """A callback without secrets, and what it reports."""

    task_id: str
    report: Report | None
    headers: Mapping[str, str]
    body: bytes


# What came of a callback, and its task.
_Applied = tuple[CallbackOutcome, Task]


class CallbackService:
    """Authenticates, stores and applies the upstream's callbacks."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        lifecycle: TaskLifecycle,
        upstream: Upstream,
        metrics: Metrics,
    ) -> None:
        self._database, self._keyring, self._lifecycle = database, keyring, lifecycle
        self._sessions = record_sessions(database.urgent_writes)
        self._upstream, self._metrics = upstream, metrics
        observe = metrics.batches["callbacks"].observe
        self._commits = GroupCommit(self._store, MAX_IN_A_COMMIT, is_idempotent=True, most=MAX_WAITING, observe=observe)

    def check_token(self, task_id: str, token: str) -> None:
        """Raise NotFound unless this is the callback URL of a task, before its body is read."""
        if len(task_id) != ID_LENGTH or not self._keyring.is_callback_token(task_id, token):
            self._metrics.callbacks["forged"].inc()
            raise NotFound

    async def receive(self, task_id: str, token: str, headers: Mapping[str, str], body: bytes) -> None:
        """
        Store a callback and apply its report; committed when this returns. Beyond MAX_KEPT callbacks of a task,
        further ones are applied and counted, but not stored.

        Raises NotAuthenticated, NotFound, DatabaseUnavailable. Our secrets are not
        stored, though a callback may repeat them.
        """
        began = time.time_ns()
        report = self._upstream.read_callback(body)
        if self._upstream.needs_signature and not self._upstream.is_signed(headers, report, datetime.now(UTC)):
            self._metrics.callbacks["unsigned"].inc()
            raise NotAuthenticated(
                detail="The callback's signature, which SOUNDPOST_CALLBACK_HMAC_KEY requires, is missing or wrong."
            )
        self._upstream.note_unknown(report)
        secrets = (token, *self._upstream.secrets)
        if report is not None and report.message != (message := report.message and redact(report.message, *secrets)):
            report = replace(report, message=message)
        received = _Received(task_id, report, _redacted(headers, secrets), redact(body, *secrets))
        outcome, task = await self._commits.add_patiently(received, self._database.limits.lock_timeout)
        self._metrics.callbacks[outcome].inc()
        line = {
            "task_id": task_id,
            "upstream_task_id": task.upstream_task_id,
            "model": task.model,
            "outcome": outcome.value,
            "bytes": len(body),
            "duration_ms": round((time.time_ns() - began) / 1e6),
        }
        # As of requests: a line for each that is as it should be would cost a fifth of it.
        write = log.warning if outcome in UNUSABLE else log.debug
        write("callback", **line)
        record_span("callback", task.trace_context, began, line)

    async def _store(self, take: Callable[[], Sequence[_Received]]) -> Sequence[_Applied | Exception]:
        """Store the callbacks that have come and apply their reports, in one commit."""
        async with self._sessions.begin() as session:
            await session.connection()
            batch = take()
            tasks, rows = await lock_free_tasks(session, {received.task_id for received in batch}, STORED_CALLBACKS)
            kept = Counter({row.id: row.stored_callbacks for row in rows})
            now = await self._database.now(session)
            outcomes = [await self._store_one(session, tasks, kept, received, now) for received in batch]
            await write_tasks(session, tasks.values())
            return outcomes

    async def _store_one(
        self,
        session: RecordSession,
        tasks: Mapping[str, Task | None],
        kept: Counter[str],
        received: _Received,
        now: datetime,
    ) -> _Applied | Exception:
        """`kept` counts the callbacks that are stored, of each task."""
        task = tasks.get(received.task_id)
        if task is None:
            return RowLocked() if received.task_id in tasks else NotFound()
        outcome = await self._apply(session, task, received.report, now)
        if kept[received.task_id] < MAX_KEPT:
            kept[received.task_id] += 1
            content = {"headers": received.headers, "body": received.body}
            row = {"id": new_id(), "task_id": task.id, "received_at": now, "outcome": outcome, **content}
            session.insert(Callback, row)
        return outcome, task

    async def _apply(self, session: Session, task: Task, report: Report | None, now: datetime) -> CallbackOutcome:
        if report is None:
            return CallbackOutcome.unreadable
        return await self._lifecycle.apply_report(session, task, report, now, ResolvedBy.callback)

    def read(self, body: bytes) -> Report | None:
        """What a stored callback reports, None where it cannot be read."""
        return self._upstream.read_callback(body)

    async def tasks_to_replay(self, since: datetime | None) -> AsyncGenerator[str]:
        """The ids of the tasks that have callbacks since a time."""
        after, is_more = "", True
        while is_more:
            async with self._database.reads() as session:
                page = await first_callbacks(session, since, after, PAGE)
            for _, task_id in page:
                yield task_id
            after, is_more = page[-1][0] if page else "", len(page) == PAGE

    async def replay(self, task_id: str, since: datetime | None, *, commits: bool) -> Sequence[Replayed]:
        """
        Apply a task's stored callbacks since a time again, in the order of arrival. Rolled back unless `commits`.

        Rolled back, each is applied to what those before it would have made of the task.
        """
        async with (
            self._database.exclusive(task_id),
            self._database.writes() as session,
            session.begin() as transaction,
        ):
            task = await lock_task(session, task_id)
            callback_ids = await callbacks_of(session, task_id, since) if task else ()
            now = await self._database.now(session)
            replayed = [await self._replay(session, task, each, now) for each in callback_ids if task]
            if not commits:
                await transaction.rollback()
            elif changed := sum(each.outcome is CallbackOutcome.applied for each in replayed):
                record(session, now, OPERATOR, "callbacks.replayed", task_id, changed=changed)
        return replayed

    async def _replay(self, session: Session, task: Task, callback_id: str, now: datetime) -> Replayed:
        callback = await session.get_one(Callback, callback_id)
        report, before = self._upstream.read_callback(callback.body), _facts(task)
        outcome = CallbackOutcome.unreadable
        if report is not None:
            outcome = await self._lifecycle.apply_report(session, task, report, now, ResolvedBy.replay)
        if outcome is CallbackOutcome.applied:
            callback.outcome = outcome
        after = _facts(task)
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        changes = {name: (before.get(name), after.get(name)) for name in names}
        return Replayed(callback_id, task.id, callback.received_at, outcome, changes)


def _facts(task: Task) -> Mapping[str, object]:
    """What a callback can change of a task, by name."""
    own = {name: getattr(task, name) for name in CHANGEABLE}
    return own | {f"clips.{clip.index}.{name}": getattr(clip, name) for clip in task.clips for name in OF_CLIPS}


def _redacted(headers: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    return {name: "***" if name in HIDDEN_HEADERS else redact(value, *secrets) for name, value in headers.items()}
