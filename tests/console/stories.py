"""Tasks in every interesting state, made by the writer of tasks itself, so that rows and events belong together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from app.database.engine import Session
from app.enums import CallbackOutcome, Charge, ErrorCode, ResolvedBy, TaskStatus
from app.models import ApiKey, Callback, Delivery, DeliveryAttempt, Task
from app.tasks.transitions import Failure
from app.upstream.history import CallKind
from app.upstream.hold import Hold, hold_submits, release_submits
from app.upstream.types import HoldReason, Outcome, Report, ReportedClip, Result, Stage, Timing
from tests.support.service import Service

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@dataclass
class Story:
    """A task whose life is played in a transaction; `at` is the time that has come, by default a while ago."""

    service: Service
    session: Session
    task: Task
    at: datetime

    def passes(self, seconds: float) -> datetime:
        """Some seconds pass."""
        self.at += timedelta(seconds=seconds)
        return self.at

    def call(self, kind: CallKind, outcome: Outcome, took: float, code: int | None = None) -> None:
        """A call about the task has been made and has taken so long."""
        self.passes(took)
        result: Result[Any] = Result(
            outcome, code=code, timing=Timing(time.monotonic() - took, timedelta(seconds=took))
        )
        self.service.services.lifecycle.record_call(self.task, kind, result, self.at)

    def submit(self) -> None:
        """The task is claimed and sent."""
        self.task.status, self.task.submitted_at = TaskStatus.submitting, self.at
        self.task.posts, self.task.charge = self.task.posts + 1, Charge.possible
        self.task.version += 1

    async def accept(self) -> None:
        """The upstream accepts the task."""
        self.call(CallKind.submit, Outcome.ok, 0.8, 200)
        await self.service.services.lifecycle.begin_generating(self.session, self.task, "up-4711", self.at)

    async def report(self, report: Report, body: bytes, via: ResolvedBy = ResolvedBy.callback) -> None:
        """A callback comes."""
        outcome = await self.service.services.lifecycle.apply_report(self.session, self.task, report, self.at, via)
        self.keep(outcome, body)

    def keep(self, outcome: CallbackOutcome, body: bytes) -> None:
        """A callback is stored."""
        row = {"headers": {}, "body": body, "outcome": outcome}
        self.session.add(Callback(task_id=self.task.id, received_at=self.at, **row))

    def deliver(self, delivery: Delivery, after: float, status: int | None, error: str | None = None) -> None:
        """An attempt of a delivery is made."""
        delivery.attempts_made += 1
        at = self.passes(after)
        answer = {"status_code": status, "error": error, "response": HOSTILE if status else None}
        self.session.add(DeliveryAttempt(delivery_id=delivery.id, attempted_at=at, duration_ms=180, **answer))


@asynccontextmanager
async def story(service: Service, prompt: str, *, ago: float = 60, **columns: Any) -> AsyncIterator[Story]:
    """A task of the client's key that was ordered some seconds ago."""
    async with service.database.reads() as session:
        at = await service.database.now(session) - timedelta(seconds=ago)
    task = await service.add_task(now=at, prompt=prompt, **columns)
    async with service.database.writes.begin() as session:
        yield Story(service, session, await session.get_one(Task, task.id), at)


async def held(service: Service) -> str:
    """A queued task behind others, while the account has no credits."""
    async with story(service, "distant thunder over a lake", ago=95) as told:
        told.passes(4)
        told.submit()
        told.call(CallKind.submit, Outcome.held, 0.6, 429)
        told.service.services.lifecycle.return_to_queue(
            told.session, told.task, told.at, told.task.created_at, was_sent=True
        )
        message = "The account has insufficient credits."
        await hold_submits(told.session, Hold(HoldReason.no_credits, told.at, message), timedelta(seconds=30))
    return told.task.id


async def let_go(service: Service) -> None:
    """End the hold."""
    async with service.database.writes.begin() as session:
        await release_submits(session)


async def generating(service: Service) -> str:
    """A task that the upstream works on, with one clip ready, and polls."""
    async with story(
        service, "a fire that crackles in a cabin", ago=80, sound_tempo=90, labels={"scene": "cabin"}
    ) as told:
        told.passes(12)
        told.submit()
        await told.accept()
        told.passes(20)
        clip = ReportedClip("c-1", "Cabin Fire", "ambient", 12.5, "sounds-5", None, "https://cdn.example/c1.mp3")
        await told.report(
            Report(Stage.running, "up-4711", (clip,)),
            b'{"code":200,"msg":"ok","data":{"callbackType":"first","task_id":"up-4711","data":[{"id":"c-1",'
            b'"audio_url":"https://cdn.example/c1.mp3","title":"Cabin Fire","duration":12.5}]}}',
        )
        for _ in range(2):
            told.passes(12)
            told.call(CallKind.poll, Outcome.pending, 0.3, 200)
    return told.task.id


async def unconfirmed(service: Service) -> str:
    """A task whose submit lost its answer."""
    async with story(service, "wind in a stairwell", ago=40) as told:
        told.passes(2)
        told.submit()
        told.call(CallKind.submit, Outcome.ambiguous, 15)
        told.service.services.lifecycle.mark_unconfirmed(told.session, told.task, told.at)
    return told.task.id


async def failed(service: Service, message: str = HOSTILE) -> str:
    """A task that the upstream refused after a while, of hostile words everywhere, with webhooks that fail."""
    url = "http://127.0.0.1:9/hook?<b>"
    async with story(service, HOSTILE, ago=600, webhook_url=url, labels={HOSTILE[:60]: HOSTILE}) as told:
        told.passes(3)
        told.submit()
        await told.accept()
        told.passes(31)
        error = ErrorCode.upstream_failed
        report = Report(Stage.failed, "up-4711", code=531, message=message, error_code=error, refunded=True)
        body = ('{"code":531,"msg":"' + message.replace('"', '\\"') + '"}').encode()
        await told.report(report, body)
        told.keep(CallbackOutcome.unreadable, b"\xff\xfe" + message.encode())
    async with service.database.writes.begin() as session:
        deliveries = (await session.scalars(select(Delivery).where(Delivery.task_id == told.task.id))).all()
        again = Story(service, session, told.task, told.at)
        for delivery in deliveries:
            again.deliver(delivery, 0.2, 500)
            again.deliver(delivery, 5, None, "the connection was refused")
            delivery.due_at = again.at + timedelta(minutes=30)
    return told.task.id


async def expired(service: Service) -> str:
    """A task that was given up at its deadline, and is still asked about."""
    async with story(service, "a train that never comes", ago=2400) as told:
        told.passes(3)
        told.submit()
        await told.accept()
        told.passes(1800)
        failure = Failure(ErrorCode.deadline_exceeded, "The upstream took the task and did not finish it in time.")
        told.service.services.lifecycle.fail(told.session, told.task, failure, told.at)
        told.task.due_at = told.at + timedelta(hours=1)
    return told.task.id


async def key_id_of(service: Service, name: str = "tests") -> str:
    """The id of the key with this name."""
    async with service.database.reads() as session:
        return (await session.scalars(select(ApiKey.id).where(ApiKey.name == name))).one()
