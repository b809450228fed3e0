"""Metrics: what is counted and timed, once it is committed, in series whose number nobody outside can raise."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.database.engine import on_commit
from app.enums import CallbackOutcome, Charge, ErrorCode, ResolvedBy, TaskStatus
from app.health.metrics import MetricsPage
from app.models import Clip, Task
from app.observability.metrics import CALL_OUTCOMES, MAX_TOLD_APART, Inventions, Metrics
from app.services import Services
from app.tasks.repository import lock_task
from app.tasks.transitions import Failure
from app.upstream.credits import note_credits
from app.upstream.hold import Hold, hold_submits
from app.upstream.types import HoldReason, Outcome, Report, Stage
from app.workers.archive import archive_loop
from app.workers.poll import poll_loop
from app.workers.runner import Loop
from app.workers.submit import submit_loop
from tests.support.clock import MORNING
from tests.support.receivers import receiving
from tests.support.rows import add_key, add_task, reread
from tests.support.scrapes import Scrape, parsed, scrape
from tests.support.service import Service, serve, serve_with_sandbox, services_of
from tests.support.wait import eventually

S = TaskStatus
LATE = timedelta(minutes=7)


async def test_whole_task_is_counted_and_timed_at_each_of_its_stages(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        await service.archived()
        await eventually(lambda: _is_stored(service, 2))
        seen = await scrape(service.client)

    assert seen("soundpost_tasks_created_total") == 1
    for status in ("submitting", "generating"):
        assert seen("soundpost_task_transitions_total", status=status, resolved_by="") == 1
    assert seen("soundpost_task_transitions_total", status="succeeded", resolved_by="callback") == 1
    assert seen("soundpost_task_charges_total", charge="charged") == 1
    assert seen("soundpost_upstream_calls_total", kind="submit", outcome="ok") == 1
    assert seen.total("soundpost_callbacks_total") == 3
    for file in ("audio", "cover"):
        assert seen("soundpost_archive_attempts_total", file=file, outcome="stored") == 2
        assert seen.total("soundpost_archived_bytes_total", file=file) > 100
    for stage, times in {"queue": 1, "submit": 1, "upstream": 1, "archive": 2}.items():
        assert seen("soundpost_stage_duration_seconds_count", stage=stage) == times, stage
    assert seen("soundpost_task_duration_seconds_count", status="succeeded") == 1
    assert 0.1 < seen.total("soundpost_stage_duration_seconds_sum", stage="upstream") < 10
    for group in ("orders", "callbacks", "submits", "clips"):
        assert seen.total("soundpost_commit_batch_size_sum", group=group) >= 1, group
    assert seen.total("soundpost_database_commits_total") >= 5
    requests = "soundpost_http_requests_total"
    assert seen(requests, method="POST", route="/v1/tasks", status="202") == 1
    assert seen(requests, method="POST", route="/callbacks/{task_id}/{token}", status="200") == 3
    assert seen.total("soundpost_database_connections_max", pool="main") >= 1


async def _is_stored(service: Service, covers: int) -> bool:
    seen = await scrape(service.client)
    return seen("soundpost_archive_attempts_total", file="cover", outcome="stored") == covers


async def test_deliveries_are_counted_by_what_becomes_of_them(database_url: str, tmp_path: Path) -> None:
    async with receiving() as receiver, serve_with_sandbox(database_url, tmp_path) as service:
        await service.archived(webhook_url=receiver.url)

        async def is_delivered() -> bool:
            return (await scrape(service.client))("soundpost_delivery_attempts_total", outcome="delivered") == 1

        await eventually(is_delivered)
        seen = await scrape(service.client)

    assert seen("soundpost_stage_duration_seconds_count", stage="delivery") == 1
    assert seen("soundpost_delivery_attempts_total", outcome="given_up") == 0


async def test_what_is_rolled_back_is_not_counted(database_url: str) -> None:
    async with services_of(database_url) as services:
        task = await add_task(services.database, await add_key(services.database), S.generating)
        async with services.database.writes() as session:
            held = await lock_task(session, task.id)
            assert held is not None
            services.lifecycle.fail(session, held, Failure(ErrorCode.upstream_failed, "no"), MORNING, ResolvedBy.poll)
            await session.rollback()
        rolled_back = await _seen(services)
        async with services.database.writes.begin() as session:
            held = await lock_task(session, task.id)
            assert held is not None
            services.lifecycle.fail(session, held, Failure(ErrorCode.upstream_failed, "no"), MORNING, ResolvedBy.poll)
        committed = await _seen(services)

    for seen, times in ((rolled_back, 0), (committed, 1)):
        assert seen("soundpost_task_transitions_total", status="failed", resolved_by="poll") == times
        assert seen("soundpost_task_failures_total", code="upstream_failed") == times
        assert seen("soundpost_task_duration_seconds_count", status="failed") == times


async def test_measure_of_a_session_is_taken_once_however_often_it_commits(database_url: str) -> None:
    taken: list[int] = []
    async with services_of(database_url) as services, services.database.writes() as session:
        on_commit(session, lambda: taken.append(1))
        await session.connection()
        await session.commit()
        await session.connection()
        await session.commit()

    assert taken == [1]


async def test_refund_counts_as_a_charge_that_was_given_back(database_url: str) -> None:
    async with services_of(database_url) as services:
        key_id = await add_key(services.database)
        seen = []
        for before in (Charge.charged, Charge.possible):
            task = await add_task(services.database, key_id, S.canceled, charge=before, upstream_task_id="u1")
            async with services.database.writes.begin() as session:
                held = await lock_task(session, task.id)
                assert held is not None
                report = Report(Stage.failed, "u1", refunded=True)
                for _ in range(2):
                    await services.lifecycle.apply_report(session, held, report, MORNING, ResolvedBy.callback)
            scraped = await _seen(services)
            seen.append([scraped("soundpost_task_charges_total", charge=each) for each in ("charged", "refunded")])

    assert seen == [[0, 1], [1, 2]]


async def test_backlog_is_what_is_stored_on_any_replica(database_url: str) -> None:
    async with services_of(database_url) as services:
        database = services.database
        key_id = await add_key(database)
        async with database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            free = await services.gateway.pacer.lock_free(session, now, 3)
            await services.gateway.pacer.reserve(session, free, now)
            await hold_submits(session, Hold(HoldReason.no_credits, now, None), timedelta(minutes=1))
            await note_credits(session, Decimal("1025.6"), 7500, MORNING)
        for late in (LATE, timedelta(), -LATE):
            await add_task(database, key_id, S.queued, now - late)
        await add_task(database, key_id, S.generating, now + LATE)
        async with services_of(database_url) as other:
            seen = await _seen(other)

    assert [seen("soundpost_tasks", status=each) for each in ("queued", "generating", "unconfirmed")] == [3, 1, 0]
    assert [seen("soundpost_due_rows", kind=kind) for kind in ("submit", "poll", "archive", "deliver")] == [2, 0, 0, 0]
    assert 420 <= seen.total("soundpost_oldest_due_age_seconds", kind="submit") < 480
    assert seen("soundpost_oldest_due_age_seconds", kind="poll") == 0
    assert (seen("soundpost_pace_slots_in_use"), seen("soundpost_pace_slots")) == (3, 20)
    held = {reason.value: seen("soundpost_submits_held", reason=reason.value) for reason in HoldReason}
    assert held == {"no_credits": 1, "bad_key": 0, "blocked": 0, "unsendable": 0}
    assert seen("soundpost_credits") == 1025.6
    assert seen("soundpost_credits_checked_timestamp_seconds") == MORNING.timestamp()
    assert seen("soundpost_charged_credits") == 7.5
    assert seen("soundpost_database_up") == 1


async def test_paused_pace_is_all_in_use(database_url: str) -> None:
    async with services_of(database_url) as services:
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            await services.gateway.pacer.pause(session, now, timedelta(minutes=1))
        seen = await _seen(services)

    assert seen("soundpost_pace_slots_in_use") == 20


async def test_credits_stay_known_while_they_are_looked_at_again_and_when_that_fails(database_url: str) -> None:
    # The upstream cannot be reached.
    async with serve(database_url) as service:
        async with service.database.transaction() as (session, _):
            await note_credits(session, Decimal(7), 0, MORNING)
        failed = await service.client.get("/v1/credits")
        seen = await scrape(service.client)

    assert failed.status_code == 502
    assert seen("soundpost_credits") == 7


async def test_scrape_while_the_database_is_silent_shows_the_rest_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql+asyncpg://u@127.0.0.1:{silent.getsockname()[1]}/x"
        async with services_of(url) as services:
            page, began = MetricsPage(services), time.monotonic()
            first = parsed((await page.render()).decode())
            took, began = time.monotonic() - began, time.monotonic()
            await page.render()
            took_again = time.monotonic() - began

    assert (first("soundpost_database_up"), first("soundpost_tasks_created_total")) == (0, 0)
    assert "soundpost_due_rows" not in first.names
    assert took < 5
    assert took_again < 0.5


async def test_no_path_and_no_method_makes_a_series_of_its_own(service: Service) -> None:
    await service.client.get("/nowhere")
    before = await scrape(service.client)
    for number in range(30):
        await service.client.get(f"/nowhere/{number}")
        await service.client.get(f"/v1/tasks/{number:032x}")
        await service.client.get(f"/v1/tasks/{number:032x}/events?limit={number + 1}")
        await service.client.post(f"/callbacks/{number:032x}/token{number}", json={})
        await service.client.request("PROPFIND", f"/v1/tasks/{number}")
        await service.client.get(f"/v1/tasks?metadata.a={number}", headers={"Prefer": f"wait={number}"})
    after = await scrape(service.client)

    requests = "soundpost_http_requests_total"
    assert after(requests, method="GET", route="none", status="404") == 31
    assert after(requests, method="GET", route="/v1/tasks/{task_id}", status="404") == 30
    assert after(requests, method="GET", route="/v1/tasks/{task_id}/events", status="404") == 30
    assert after(requests, method="POST", route="/callbacks/{task_id}/{token}", status="404") == 30
    assert after.total(requests, method="other") == 30
    new = {labels for name, labels in after.samples if name == requests} - {
        labels for name, labels in before.samples if name == requests
    }
    assert len(new) <= 8, new


async def test_inventions_of_the_upstream_make_fifty_series_and_one() -> None:
    metrics = Metrics()
    codes: Inventions = metrics.unknown_codes

    are_new = [codes.count(str(number)) for number in range(1000, 1100)]
    codes.count("1000")

    families = [family for family in metrics.collect() if family.name == "soundpost_unknown_codes"]
    counted = {sample.labels["code"]: sample.value for family in families for sample in family.samples}
    assert sum(are_new) == MAX_TOLD_APART
    assert len(counted) == MAX_TOLD_APART + 1
    assert (counted["1000"], counted["1001"], counted["other"]) == (2, 1, 50)


async def test_code_in_no_list_is_counted(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task_id = await service.create_task()
        report = {"code": 599, "msg": "?", "data": {"callbackType": "error", "task_id": "u", "data": None}}
        await service.anonymous.post(service.callback_path(task_id), json=report)
        await service.anonymous.post(service.callback_path(task_id), json={**report, "code": 531})
        # To look at it again, as a page of the console does every second, is no news.
        assert service.services.callbacks.read(json.dumps(report).encode())
        assert await service.services.callbacks.replay(task_id, None, commits=False)
        seen = await scrape(service.client)

    assert seen("soundpost_unknown_codes_total", code="599") == 1
    assert seen("soundpost_unknown_codes_total", code="531") is None


def test_label_values_are_those_of_the_service() -> None:
    metrics = Metrics()

    assert set(CALL_OUTCOMES) == {outcome.value for outcome in Outcome}
    assert set(metrics.callbacks) == {*CallbackOutcome, "forged", "unsigned"}
    assert {status for status, _ in metrics.transitions} == set(TaskStatus)
    assert set(metrics.failures) == set(ErrorCode)


@pytest.mark.parametrize(("kind", "status"), [("submit", S.queued), ("poll", S.generating)])
async def test_result_that_comes_after_its_lease_is_counted(database_url: str, kind: str, status: TaskStatus) -> None:
    async with services_of(database_url) as services:
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
        upstream_task_id = "u1" if status is S.generating else None
        key_id = await add_key(services.database)
        task = await add_task(services.database, key_id, status, now - LATE, upstream_task_id=upstream_task_id)
        loop: Loop[Any] = submit_loop(services) if kind == "submit" else poll_loop(services)
        [claimed] = (await loop.claim(1)).items
        await _take_over(services, task)
        await loop.work(claimed)
        seen = await _seen(services)

    assert seen("soundpost_leases_lost_total", kind=kind) == 1
    assert seen.total("soundpost_upstream_calls_total", kind=kind) == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus package")
async def test_names_and_units_are_those_of_the_conventions(service: Service) -> None:
    await service.create_task()
    text = (await scrape(service.client)).text

    assert _promtool("check", "metrics", given=text) == (0, "")


def _promtool(*arguments: str, given: str) -> tuple[int, str]:
    done = subprocess.run([str(shutil.which("promtool")), *arguments], input=given, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


async def test_file_of_a_clip_that_another_worker_has_is_counted_as_lost(database_url: str) -> None:
    async with services_of(database_url) as services:
        task = await add_task(services.database, await add_key(services.database), S.succeeded)
        async with services.database.writes.begin() as session:
            link = "http://127.0.0.1:9/audio.mp3"
            session.add(Clip(task_id=task.id, index=0, upstream_audio_url=link, created_at=MORNING, due_at=MORNING))
        loop = archive_loop(services)
        [claimed] = (await loop.claim(1)).items
        async with services.database.writes.begin() as session:
            (await session.get_one(Clip, claimed.clip.id)).fence = "another"
        await loop.work(claimed)
        seen = await _seen(services)

    assert seen("soundpost_leases_lost_total", kind="archive") == 1
    assert seen("soundpost_archive_attempts_total", file="audio", outcome="failed") == 1
    assert seen("soundpost_archive_attempts_total", file="audio", outcome="stored") == 0


async def _take_over(services: Services, task: Task) -> None:
    async with services.database.writes.begin() as session:
        held = await lock_task(session, (await reread(services.database, task.id)).id)
        assert held is not None
        held.fence = "another"


async def _seen(services: Services) -> Scrape:
    return parsed((await MetricsPage(services).render()).decode())
