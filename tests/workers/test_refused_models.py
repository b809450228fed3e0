"""Tasks of a model that the upstream refuses wait, those of others go on, and `/readyz` says what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.enums import TaskStatus
from app.models import Task
from app.services import Services
from app.workers.submit import submit_loop
from tests.support.receivers import Received, Receiver, Reply, receiving
from tests.support.rows import add_key, add_task
from tests.support.service import Service, serve, serve_with_sandbox, services_of
from tests.support.wait import eventually

WORDS = "model V9 does not exist"
QUICK = {"upstream_rate": "1000/1", "models": "V5,V9", "hold_recheck": "0.3"}


class Upstream:
    """An upstream that takes submits, but for those of refused models and of a bad prompt."""

    def __init__(self, receiver: Receiver) -> None:
        self.refused, self.posts = {"V9"}, list[str]()
        receiver.respond = self._respond

    def _respond(self, request: Received) -> Reply:
        if not request.path.endswith("/sounds"):
            return Reply(200, body=b'{"code": 200, "msg": "success", "data": 1000}')
        order = json.loads(request.body)
        self.posts.append(order["model"])
        if order["prompt"] == "bad":
            return _answer(400, "prompt contains words that are not allowed")
        if order["model"] in self.refused:
            return _answer(400, f"model {order['model']} does not exist")
        return _answer(200, "success", {"taskId": f"up-{len(self.posts)}"})


async def test_refused_model_is_named_and_its_tasks_wait_while_others_go_on(database_url: str) -> None:
    async with _served(database_url) as (service, upstream):
        first = [await _failed(service, await service.create_task(model="V9")) for _ in range(2)]
        waiting = [await service.create_task(model="V9") for _ in range(10)]
        others = [await service.create_task(model="V5") for _ in range(5)]
        for task_id in others:
            await service.until(task_id, lambda task: task["status"] == "generating")
        await eventually(lambda: _is(service, "degraded"))
        seen = await _checks(service)
        posts = Counter(upstream.posts)
        tasks = [await service.task(task_id) for task_id in waiting]
        upstream.refused = set()
        for task_id in waiting:
            await service.until(task_id, lambda task: task["status"] == "generating")
        afterwards = await _checks(service)

    assert [task["error"]["code"] for task in first] == 2 * ["invalid_request"]
    assert (seen["status"], seen["checks"]["queue"]["status"]) == ("degraded", "ok")
    detail = seen["checks"]["models"]["detail"]
    assert detail.startswith("the upstream refuses the model V9 since 20")
    assert f'("{WORDS}")' in detail
    assert "SOUNDPOST_MODELS, such as V9=V6" in detail
    # What was on its way when the third was refused comes to this, and one a recheck.
    assert (posts["V5"], posts["V9"] < 12) == (5, True)
    assert {(task["status"], task["charge"], task["error"]) for task in tasks} <= {
        ("queued", "none", None),
        ("submitting", "possible", None),
    }
    assert afterwards["checks"]["models"]["status"] == "ok"


async def test_bad_prompts_fail_and_make_no_model_refused(database_url: str) -> None:
    async with _served(database_url) as (service, _):
        bad = [await service.create_task("bad", model="V5") for _ in range(6)]
        ends = [await _failed(service, task_id) for task_id in bad]
        checks = (await _checks(service))["checks"]

    assert {task["error"]["code"] for task in ends} == {"invalid_request"}
    assert checks["models"]["status"] == "ok"


async def test_sandbox_refuses_a_model_that_it_does_not_know(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, models="V5,V9", hold_recheck=600) as service:
        for _ in range(5):
            await service.create_task(model="V9")
        await eventually(lambda: _is(service, "degraded"))
        detail = (await _checks(service))["checks"]["models"]["detail"]
        metrics = (await service.anonymous.get("/metrics")).text
        async with service.database.reads() as session:
            states = Counter((await session.scalars(select(Task.status))).all())

    assert "model is invalid, allowed: V5, V5_5, V6" in detail
    assert "\nsoundpost_refused_models 1.0\n" in metrics
    assert states[TaskStatus.failed] <= 2
    assert states[TaskStatus.failed] + states[TaskStatus.queued] == 5


async def test_tasks_of_a_refused_model_use_up_no_slot(database_url: str) -> None:
    async with _parts(database_url, upstream_rate="4/600") as (services, upstream):
        key = await add_key(services.database)
        await _make_refused(services, key)
        upstream.posts.clear()
        for model in ("V9", "V9", "V9", "V5", "V9", "V5"):
            await add_task(services.database, key, model=model)

        claimed = (await submit_loop(services).claim(20)).items
        async with services.database.reads() as session:
            queued = select(Task).where(Task.status == TaskStatus.queued)
            waiting = (await session.scalars(queued)).all()

    # Three of the four slots were for the refused ones at first.
    assert [submit.task.model for submit in claimed] == ["V5"]
    assert {(task.model, task.posts, task.attempts, task.submitted_at) for task in waiting if task.model == "V9"} == {
        ("V9", 0, 0, None),
        ("V9", 1, 0, None),
    }


async def _make_refused(services: Services, key: str) -> None:
    for _ in range(3):
        await add_task(services.database, key, model="V9")
        loop = submit_loop(services)
        [submit] = (await loop.claim(1)).items
        await loop.work(submit)


async def _failed(service: Service, task_id: str) -> dict[str, Any]:
    return await service.until(task_id, lambda task: task["status"] == "failed")


async def _checks(service: Service) -> dict[str, Any]:
    checks: dict[str, Any] = (await service.client.get("/readyz")).raise_for_status().json()
    return checks


async def _is(service: Service, status: str) -> bool:
    return bool((await _checks(service))["checks"]["models"]["status"] == status)


@asynccontextmanager
async def _served(database_url: str) -> AsyncIterator[tuple[Service, Upstream]]:
    async with receiving() as receiver:
        upstream = Upstream(receiver)
        async with serve(database_url, runs_workers=True, upstream_url=receiver.url, **QUICK) as service:
            yield service, upstream


@asynccontextmanager
async def _parts(database_url: str, **settings: Any) -> AsyncIterator[tuple[Services, Upstream]]:
    async with receiving() as receiver:
        upstream = Upstream(receiver)
        chosen = {**QUICK, "hold_recheck": "600", **settings}
        async with services_of(database_url, upstream_url=receiver.url, **chosen) as services:
            async with services.database.transaction() as (session, now):
                await services.gateway.pacer.prepare(session, now)
            yield services, upstream


def _answer(code: int, message: str, data: Any = None) -> Reply:
    return Reply(200, body=json.dumps({"code": code, "msg": message, "data": data}).encode())
