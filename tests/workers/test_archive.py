"""Audio becomes ours as soon as there is any, through everything that a host can do to a download."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.database.wakeups import ARCHIVES, notify_on_commit
from app.enums import TaskStatus
from app.models import QUESTIONS, Clip, Task
from app.sandbox import FAULTS
from app.sandbox.audio import Sound, synthesise
from app.services import Services
from app.tasks.clips import MAX_EXTRA_ATTEMPTS
from app.upstream.pacing import questions_share
from app.workers.archive import archive_loop
from app.workers.clip_lanes import share_places
from app.workers.runner import run_loop, wake_when_due
from tests.support.clock import MORNING
from tests.support.receivers import Reply, hang, receiving
from tests.support.rows import add_key, add_task
from tests.support.service import Service, serve_with_sandbox, services_of
from tests.support.wait import eventually

# Each fault strikes so often, and then the file can be had.
PASSING_FAULTS = [
    "audio-403=2",
    "audio-404=2",
    "audio-410=2",
    "audio-441=2",
    "audio-500=2",
    "audio-empty=2",
    "audio-html=2",
    "audio-hang=1",
    "audio-reset=2",
    "audio-truncated=2",
    "audio-cut=2",
    "audio-source-only",
    "audio-expired-then-fresh",
    "audio-mislabelled",
    "audio-redirect",
    "audio-slow=1",
]
# The `archive_error` of each fault that never ends.
LASTING_FAULTS = {
    "audio-403": "the host answered 403",
    "audio-empty": "the file is empty",
    "audio-html": "the file is not a known type of audio",
    "audio-truncated": "the connection broke (RemoteProtocolError)",
    "audio-cut": "the file is not playable as audio/wav, or it is truncated",
    "audio-too-large=2": "the file is larger than 1000000 bytes",
}


SOUND = synthesise(Sound("soft rain", None, "Any", loop=False, take=0))


def test_every_fault_of_audio_is_tried() -> None:
    tried = {fault.partition("=")[0] for fault in (*PASSING_FAULTS, *LASTING_FAULTS)}

    assert tried == {name for name, fault in FAULTS.items() if fault.group == "Audio"}


async def test_every_clip_is_archived_with_an_event(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived()
        events = (await service.client.get(f"/v1/tasks/{task['id']}/events")).json()["items"]
        archived = [event["data"]["clips"][0] for event in events if event["type"] == "clip.archived"]
        # Between the clips and their events the task may have come further.
        latest = await service.task(task["id"])
        files = [(await service.upstream.get(clip["upstream_audio_url"])).content for clip in task["clips"]]

    # The clips are archived at the same time, in any order.
    hashes = {clip["index"]: clip["sha256"] for clip in archived}
    assert (len(archived), hashes) == (2, {clip["index"]: clip["sha256"] for clip in task["clips"]})
    for clip, file in zip(task["clips"], files, strict=True):
        assert (clip["sha256"], clip["size"]) == (hashlib.sha256(file).hexdigest(), len(file))
        assert clip["content_type"] == "audio/wav"
        assert (tmp_path / "audio/sha256" / clip["sha256"][:2] / f"{clip['sha256'][2:]}.wav").read_bytes() == file
    assert [event["version"] for event in events] == sorted({event["version"] for event in events})
    assert latest["version"] >= events[-1]["version"]


async def test_first_clip_is_archived_before_the_task_has_ended(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, sandbox={"delay": 4}) as service:
        task = await service.until(
            await service.create_task(), lambda task: any(clip["archived_at"] for clip in task["clips"])
        )

    assert task["status"] == "generating"


async def test_fault_of_a_host_only_delays_a_copy(database_url: str, tmp_path: Path) -> None:
    # This is how long a host may say nothing.
    async with serve_with_sandbox(database_url, tmp_path, webhook_timeout=2) as service:
        tasks = await asyncio.gather(*(service.archived(f"soft rain [fault:{fault}]") for fault in PASSING_FAULTS))
        kept = {
            fault: [(await service.client.get(clip["audio_url"])).content for clip in task["clips"]]
            for fault, task in zip(PASSING_FAULTS, tasks, strict=True)
        }

    expected = {
        fault: [clip["sha256"] for clip in task["clips"]] for fault, task in zip(PASSING_FAULTS, tasks, strict=True)
    }
    assert {fault: [hashlib.sha256(file).hexdigest() for file in files] for fault, files in kept.items()} == expected
    assert {file[:4] for files in kept.values() for file in files} == {b"RIFF"}
    assert {clip["content_type"] for task in tasks for clip in task["clips"]} == {"audio/wav"}


async def test_incomplete_file_is_never_stored_and_has_a_reason(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, audio_max_mb=1) as service:
        service.services.clips.audio_wait = timedelta(seconds=0.1)
        tasks = {fault: await service.create_task(f"soft rain [fault:{fault}]") for fault in LASTING_FAULTS}
        for task_id in tasks.values():
            await service.until(task_id, lambda task: task["status"] == "succeeded")
            await eventually(partial(knows_problem, service, task_id))
        problems = {fault: await problem_of(service, task_id) for fault, task_id in tasks.items()}
        clips = [(await service.task(task_id))["clips"] for task_id in tasks.values()]
        answer = await service.client.get(f"/v1/tasks/{tasks['audio-403']}/clips/0/audio")

    assert problems == LASTING_FAULTS
    assert {clip["archived_at"] for of_task in clips for clip in of_task} == {None}
    assert list((tmp_path / "audio").rglob("*.wav")) == []
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "5")


async def test_host_without_an_allowed_address_is_not_called(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, egress_allow="") as service:
        task_id = await service.create_task()
        await eventually(lambda: knows_problem(service, task_id))
        problem, downloads = await problem_of(service, task_id), await service.downloads()

    assert problem == "the URL's host is a loopback address"
    assert downloads == []


async def test_clip_is_given_up_when_the_upstream_no_longer_has_it(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task_id = await service.create_task("soft rain [fault:audio-404]")
        await eventually(lambda: knows_problem(service, task_id))
        async with service.database.writes.begin() as session:
            await session.execute(update(Clip).values(created_at=datetime.now(UTC) - timedelta(days=14)))

        async def is_given_up() -> bool:
            return (await service.client.get(f"/v1/tasks/{task_id}/clips/0/audio")).status_code == 410

        await eventually(is_given_up, 20)
        answer = await service.client.get(f"/v1/tasks/{task_id}/clips/0/audio")
        lost = (await service.task(task_id))["clips"][0]

    assert lost["audio_url"] is None
    assert answer.json()["type"] == "/problems/audio-lost"
    assert "the host answered 404" in answer.json()["detail"]


async def test_equal_sounds_share_one_file(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        first = await service.archived("the same rain")
        second = await service.archived("the same rain")

    assert [clip["sha256"] for clip in first["clips"]] == [clip["sha256"] for clip in second["clips"]]
    assert len(list((tmp_path / "audio").rglob("*.wav"))) == len(first["clips"])


async def knows_problem(service: Service, task_id: str) -> bool:
    return await problem_of(service, task_id) is not None


async def problem_of(service: Service, task_id: str) -> str | None:
    async with service.database.reads() as session:
        problems = await session.scalars(select(Clip.archive_error).where(Clip.task_id == task_id))
        return next((problem for problem in problems if problem), None)


def test_no_host_gets_the_last_places_while_others_wait() -> None:
    assert share_places(["slow"], {}, 32) == {"slow": 16}
    assert share_places(["slow"], {"slow": 16}, 16) == {}
    assert share_places(["slow", "good"], {"slow": 16}, 16) == {"good": 8}
    assert share_places(["a", "b"], {}, 32) == {"a": 11, "b": 11}
    assert share_places(["good"], {"slow": 16, "slower": 8, "slowest": 4}, 4) == {"good": 2}
    assert share_places(["good"], {}, 1) == {"good": 1}


async def test_silent_host_delays_no_clip_of_another(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    async with (
        archiving(database_url, tmp_path) as (services, task),
        receiving(hang) as silent,
        receiving(Reply(200, body=SOUND)) as good,
    ):
        await add_clips(services, task, 1000, upstream_audio_url=silent.url_at("/a.wav"))
        # They have places already, and the rest of them waits.
        await eventually(lambda: silent.at_once == 16, within=30)
        began = time.monotonic()
        [clip] = await add_clips(services, task, 1, upstream_audio_url=good.url_at("/a.wav"))
        await eventually(lambda: is_kept(services, clip), within=10)
        measured(f"a clip of a good host behind 1,000 of a silent one: {time.monotonic() - began:.2f} s")

        # No place of the silent host was waited for.
        assert silent.connections == silent.at_once == 16


async def test_clips_that_wait_for_a_fresh_link_take_no_place_of_their_host(database_url: str, tmp_path: Path) -> None:
    # The one slot of the pace stays taken, so that every question waits.
    async with (
        archiving(database_url, tmp_path, upstream_rate="1/600") as (services, task),
        receiving(Reply(200, body=SOUND)) as host,
    ):
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            await services.gateway.pacer.reserve(session, [0], now)
        await add_clips(services, task, 100, upstream_audio_url=host.url_at("/old.wav"), attempts=1, lane=QUESTIONS)
        [clip] = await add_clips(services, task, 1, upstream_audio_url=host.url_at("/young.wav"))

        await eventually(lambda: is_kept(services, clip), within=9)

        assert [request.path for request in host.requests] == ["/young.wav"]


async def test_questions_without_a_slot_of_the_pace_use_up_no_attempt(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.upstream.gateway.SLOT_TIMEOUT", timedelta(milliseconds=1))
    async with services_of(database_url, upstream_rate="1/600") as services:
        key = await add_key(services.database)
        task = await add_task(services.database, key, TaskStatus.succeeded, upstream_task_id="up-1", grab_lyrics=True)
        async with services.database.transaction() as (session, now):
            await services.gateway.pacer.prepare(session, now)
            await services.gateway.pacer.reserve(session, [0], now)
        known = {"upstream_clip_id": "c1", "archived_at": MORNING, "lane": QUESTIONS}
        await add_clips(services, task, 1, **known, attempts=MAX_EXTRA_ATTEMPTS - 1)
        loop = archive_loop(services)
        for _ in range(2):
            [claimed] = (await loop.claim(1)).items
            await loop.work(claimed)
            async with services.database.writes.begin() as session:
                await session.execute(update(Clip).values(due_at=MORNING))
        async with services.database.reads() as session:
            attempts = await session.scalar(select(Clip.attempts))

    assert attempts == MAX_EXTRA_ATTEMPTS - 1


async def test_questions_leave_slots_to_polls_that_are_due(database_url: str) -> None:
    async with services_of(database_url, upstream_rate="20/10") as services:
        key = await add_key(services.database)
        async with services.database.transaction() as (session, now):
            shares = [await questions_share(session, now)]
        for status in (TaskStatus.generating, TaskStatus.queued):
            await add_task(services.database, key, status)
            async with services.database.transaction() as (session, now):
                shares.append(await questions_share(session, now))

    assert [len(services.gateway.pacer.part(share)) for share in shares] == [15, 6, 2]


async def test_young_clip_is_tried_before_those_of_its_host_that_failed(database_url: str) -> None:
    async with services_of(database_url) as services:
        task = await add_task(services.database, await add_key(services.database), TaskStatus.succeeded)
        link = {"upstream_audio_url": "https://cdn.example/a.wav"}
        await add_clips(services, task, 50, **link, attempts=3, due_at=MORNING)
        [young] = await add_clips(services, task, 1, **link)

        claimed = await archive_loop(services).claim(32)

    assert young.id in {each.clip.id for each in claimed.items}
    assert len(claimed.items) == 16


async def test_silent_host_of_covers_takes_no_place_of_the_audio(database_url: str, tmp_path: Path) -> None:
    async with (
        archiving(database_url, tmp_path) as (services, task),
        receiving(hang) as silent,
        receiving(Reply(200, body=SOUND)) as good,
    ):
        links = {"upstream_audio_url": good.url_at("/a.wav"), "image_url": silent.url_at("/a.png")}
        clips = await add_clips(services, task, 30, **links)

        await eventually(lambda: is_kept(services, *clips), within=14)

        assert silent.connections <= 16


@asynccontextmanager
async def archiving(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[tuple[Services, Task]]:
    """The parts of the service with a running archive worker, and a task whose clips it archives."""
    async with services_of(database_url, storage_url=f"file:{folder}/audio", **settings) as services:
        key = await add_key(services.database)
        task = await add_task(services.database, key, TaskStatus.succeeded, upstream_task_id="up-1")
        stopping = asyncio.Event()
        loop = archive_loop(services)
        watch = wake_when_due([loop], services.database, stopping)
        running = asyncio.gather(run_loop(loop, stopping), watch)
        try:
            yield services, task
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def add_clips(services: Services, task: Task, count: int, **columns: Any) -> list[Clip]:
    """Add clips of a task that are due now."""
    now = datetime.now(UTC)
    async with services.database.writes.begin() as session:
        first = await session.scalar(select(func.count()).where(Clip.task_id == task.id)) or 0
        values = {"task_id": task.id, "created_at": now, "due_at": now, "attempts": 0, **columns}
        clips = [Clip(index=first + number, **values) for number in range(count)]
        session.add_all(clips)
        notify_on_commit(session, ARCHIVES)
    return clips


async def is_kept(services: Services, *clips: Clip) -> bool:
    async with services.database.reads() as session:
        ids = [clip.id for clip in clips]
        kept = select(func.count()).where(Clip.id.in_(ids), Clip.archived_at.isnot(None))
        return await session.scalar(kept) == len(clips)
