"""Callbacks: the message and its effect on the task are one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from app.callbacks.repository import find_callbacks
from app.config import Settings
from app.database.base import ID_LENGTH
from app.database.engine import Database, Session
from app.enums import CallbackOutcome, ResolvedBy
from app.errors import NotAuthenticated, NotFound
from app.keyring import Keyring
from app.models import Callback, Task
from app.observability.metrics import Metrics
from app.observability.redaction import redact
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.repository import lock_task
from app.upstream.types import Report, Upstream

log = structlog.get_logger()

HIDDEN_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-webhook-signature"})


class CallbackService:
    """Authenticates, stores and applies the upstream's callbacks."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        keyring: Keyring,
        lifecycle: TaskLifecycle,
        upstream: Upstream,
        metrics: Metrics,
    ) -> None:
        self._database, self._keyring, self._lifecycle = database, keyring, lifecycle
        self._upstream, self._metrics = upstream, metrics
        self._needs_signature = settings.callback_hmac_key is not None
        self._api_key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else ""

    def check_token(self, task_id: str, token: str) -> None:
        """Raise NotFound unless this is the callback URL of a task, before its body is read."""
        if len(task_id) != ID_LENGTH or not self._keyring.is_callback_token(task_id, token):
            self._metrics.callbacks.labels(outcome="forged").inc()
            raise NotFound

    async def receive(self, task_id: str, token: str, headers: Mapping[str, str], body: bytes) -> None:
        """
        Store a callback and apply its report; committed when this returns.

        Raises NotAuthenticated, NotFound. Our secrets are not stored, though a callback may repeat them.
        """
        report = self._upstream.read_callback(body)
        if self._needs_signature and not self._upstream.is_signed(headers, report, datetime.now(UTC)):
            self._metrics.callbacks.labels(outcome="unsigned").inc()
            raise NotAuthenticated(
                detail="The callback's signature, which SOUNDPOST_CALLBACK_HMAC_KEY requires, is missing or wrong."
            )
        secrets = (token, self._api_key)
        if report is not None:
            report = replace(report, message=report.message and redact(report.message, *secrets))
        async with self._database.writes.begin() as session:
            task = await lock_task(session, task_id)
            if task is None:
                raise NotFound
            now = await self._database.now(session)
            outcome = await self._apply(session, task, report, now)
            session.add(
                Callback(
                    task_id=task_id,
                    received_at=now,
                    headers=_redacted(headers, secrets),
                    body=redact(body, *secrets),
                    outcome=outcome,
                )
            )
        self._metrics.callbacks.labels(outcome=outcome.value).inc()
        log.info("callback", task_id=task_id, outcome=outcome.value, bytes=len(body))

    async def _apply(self, session: Session, task: Task, report: Report | None, now: datetime) -> CallbackOutcome:
        if report is None:
            return CallbackOutcome.unreadable
        return await self._lifecycle.apply_report(session, task, report, now, ResolvedBy.callback)

    async def find(self, task_id: str | None, since: datetime | None) -> Sequence[str]:
        """The ids of the stored callbacks, in the order of arrival: of one task, or since a time, or all."""
        async with self._database.reads() as session:
            return await find_callbacks(session, task_id, since)

    async def replay(self, callback_id: str, *, commits: bool) -> bool:
        """Apply a stored callback again; return whether it changed the task. Rolled back unless `commits`."""
        async with self._database.writes() as session, session.begin() as transaction:
            is_applied = await self._replay(session, callback_id)
            if not commits:
                await transaction.rollback()
        return is_applied

    async def _replay(self, session: Session, callback_id: str) -> bool:
        callback = await session.get(Callback, callback_id)
        task = await lock_task(session, callback.task_id) if callback else None
        report = self._upstream.read_callback(callback.body) if callback else None
        if callback is None or task is None or report is None:
            return False
        now = await self._database.now(session)
        outcome = await self._lifecycle.apply_report(session, task, report, now, ResolvedBy.replay)
        if outcome is CallbackOutcome.applied:
            callback.outcome = outcome
        return outcome is CallbackOutcome.applied


def _redacted(headers: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    return {name: "***" if name in HIDDEN_HEADERS else redact(value, *secrets) for name, value in headers.items()}
