"""Reports in any order, repeated, late and contradictory, compared with a model of the table of transitions."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.callbacks.service import CallbackService
from app.database.engine import Database
from app.enums import Charge, TaskStatus
from app.models import Task
from app.services import build_services
from app.tasks.repository import lock_task
from app.tasks.transitions import FINAL
from app.upstream.suno.client import SunoApi
from tests.faults.ledger import Ledger, final_tasks_are_final_events, no_step_goes_back, read_rows
from tests.support.clock import Clock
from tests.support.rows import add_key, add_task
from tests.support.settings import UPSTREAM_KEY, settings_of

S = TaskStatus
OURS, ANOTHERS = "2fac9f72", "7d9e0000"


@dataclass(frozen=True)
class Said:
    """One callback: its code and type, how many of two clips can be heard, and what it means."""

    code: int
    kind: str
    audible: int
    leads_to: TaskStatus = S.generating
    charge: Charge = Charge.charged

    def body(self, upstream_task_id: str) -> bytes:
        clips = [{"id": f"clip-{n}", "audio_url": f"https://cdn.example/{n}.mp3"} for n in range(self.audible)]
        silent = [{"id": f"clip-{n}", "audio_url": ""} for n in range(self.audible, 2)]
        data = {"callbackType": self.kind, "task_id": upstream_task_id, "data": clips + silent}
        return json.dumps({"code": self.code, "msg": "said", "data": data}).encode()


SAID: Mapping[str, Said] = {
    "text": Said(200, "text", 0),
    "first": Said(200, "first", 1),
    "complete": Said(200, "complete", 2, S.succeeded),
    "complete without audio": Said(200, "complete", 0),
    "of a type that nobody knows": Said(200, "progress", 2),
    "error": Said(500, "error", 0, S.failed),
    "error as complete": Said(400, "complete", 0, S.failed),
    "refunded": Said(531, "error", 0, S.failed, Charge.refunded),
}
SENT = (S.submitting, S.unconfirmed, S.generating)


@dataclass
class Model:
    """What must be true of the task."""

    status: TaskStatus
    charge: Charge
    upstream_task_id: str | None = None
    clips: int = 0
    was_given_up: bool = False

    def hear(self, said: Said) -> None:
        if self.status is S.failed and self.was_given_up and said.leads_to is S.succeeded:
            # It gave a sound after all, so it was paid for, whatever was said before.
            self.status, self.was_given_up, self.charge = S.generating, False, Charge.charged
        if self.status is not S.succeeded:
            self.charge = max(self.charge, said.charge, key=list(Charge).index)
        self.upstream_task_id = OURS
        if self.status not in FINAL:
            self.clips = max(self.clips, said.audible)
            self.status = said.leads_to


class Reports(RuleBasedStateMachine):
    """One task of one database, and the model beside it."""

    runner: asyncio.Runner
    database: Database
    clock: Clock
    key_id: str

    def __init__(self) -> None:
        super().__init__()
        services = build_services(settings_of(self.database.url))
        self.lifecycle, self.token = services.lifecycle, services.keyring.callback_token
        self.callbacks = CallbackService(
            self.database,
            services.keyring,
            services.lifecycle,
            SunoApi(services.upstream_http, UPSTREAM_KEY, timedelta(seconds=1)),
            services.metrics,
        )

    @initialize(status=st.sampled_from(SENT))
    def a_task_that_was_sent(self, status: TaskStatus) -> None:
        task = self.runner.run(
            add_task(self.database, self.key_id, S.submitting, self.clock.now, charge=Charge.possible)
        )
        self.task_id = task.id
        self.model = Model(S.submitting, Charge.possible)
        if status is S.generating:
            self.is_answered()
        elif status is S.unconfirmed:
            self.loses_its_answer()

    @rule(name=st.sampled_from(sorted(SAID)), times=st.integers(1, 2))
    def is_reported(self, name: str, times: int) -> None:
        for _ in range(times):
            self._receive(SAID[name].body(OURS))
            self.model.hear(SAID[name])

    @rule(name=st.sampled_from(sorted(SAID)))
    def is_reported_of_another(self, name: str) -> None:
        # As long as no id is known, any authentic callback may be the one that adopts.
        if self.model.upstream_task_id is not None:
            self._receive(SAID[name].body(ANOTHERS))

    @rule(body=st.sampled_from([b"", b"[]", b"{", b'"text"', b"\xff"]))
    def is_reported_unreadably(self, body: bytes) -> None:
        self._receive(body)

    @rule()
    def is_given_up(self) -> None:
        if self.model.status in (S.unconfirmed, S.generating):
            self.clock.advance(hours=2)
            self._change("give_up")
            self.model.status, self.model.was_given_up = S.failed, True

    @rule()
    def is_answered(self) -> None:
        if self.model.status is S.submitting:
            self._change("begin")
            self.model.status, self.model.charge, self.model.upstream_task_id = S.generating, Charge.charged, OURS

    @rule()
    def loses_its_answer(self) -> None:
        if self.model.status is S.submitting:
            self._change("lose_track")
            self.model.status = S.unconfirmed

    @rule()
    def is_canceled(self) -> None:
        if self.model.status not in FINAL:
            self._change("cancel")
            self.model.status = S.canceled

    @invariant()
    def is_as_the_model_says(self) -> None:
        if not hasattr(self, "task_id"):
            return
        tasks, events = self.runner.run(read_rows(self.database, Task.id == self.task_id))
        task, ledger = tasks[self.task_id], Ledger(tasks, events, [], [])
        found = Model(task.status, task.charge, task.upstream_task_id, len(task.clips), self.model.was_given_up)

        assert found == self.model
        assert [*no_step_goes_back(ledger), *final_tasks_are_final_events(ledger)] == []

    def _receive(self, body: bytes) -> None:
        self.clock.advance(seconds=1)
        self.runner.run(self.callbacks.receive(self.task_id, self.token(self.task_id), {}, body))

    def _change(self, step: str) -> None:
        self.runner.run(self._changed(step))

    async def _changed(self, step: str) -> None:
        async with self.database.writes.begin() as session:
            task = await lock_task(session, self.task_id)
            assert task is not None
            if step == "give_up":
                assert self.lifecycle.expire_if_overdue(session, task, self.clock.now)
            elif step == "begin":
                await self.lifecycle.begin_generating(session, task, OURS, self.clock.now)
            elif step == "lose_track":
                self.lifecycle.mark_unconfirmed(session, task, self.clock.now)
            else:
                self.lifecycle.cancel(session, task, self.clock.now)


def test_reports_in_any_order_leave_what_the_model_says(database_url: str) -> None:
    with asyncio.Runner() as runner:
        clock = Clock()
        database = Database(database_url, clock)
        shared: dict[str, Any] = {"runner": runner, "database": database, "clock": clock}
        shared["key_id"] = runner.run(add_key(database))
        machine = type("ReportsOnOneDatabase", (Reports,), shared)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=10,
                deadline=timedelta(seconds=10),
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        runner.run(database.close())
