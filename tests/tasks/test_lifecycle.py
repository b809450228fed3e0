"""Reports are applied once, whichever way, whenever and however often they arrive."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.database.engine import Database
from app.enums import CallbackOutcome, Charge, ErrorCode, ResolvedBy, TaskStatus
from app.models import Task
from app.tasks.repository import lock_task
from app.tasks.schedule import MAX_AUDIO_CHECKS, MIN_POLL_INTERVAL
from app.upstream.types import Report, ReportedClip, Stage
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task, event_types, lifecycle_of, reread

S = TaskStatus
NOON = MORNING + timedelta(hours=4)
FIRST = ReportedClip("clip-1", title="Rain", duration=7.5, audio_url="https://cdn.example/1.mp3")
SECOND = ReportedClip("clip-2", title="Rain", duration=8.5, audio_url="https://cdn.example/2.mp3")
SILENT = ReportedClip("clip-2", title="Rain")
RUNNING = Report(Stage.running, "up-1")
PROGRESS = Report(Stage.running, "up-1", (FIRST, SILENT))
SUCCESS = Report(Stage.succeeded, "up-1", (FIRST, SECOND))
UNCLEAR = Report(Stage.unclear, "up-1")
FAILURE = Report(Stage.failed, "up-1", code=500, message="It broke.", error_code=ErrorCode.upstream_failed)
REFUND = Report(
    Stage.failed, "up-1", code=531, message="Refunded.", error_code=ErrorCode.upstream_failed, refunded=True
)
REPORTS = {Stage.running: RUNNING, Stage.succeeded: SUCCESS, Stage.failed: FAILURE, Stage.unclear: UNCLEAR}

LIVE = (S.queued, S.submitting, S.unconfirmed, S.generating)
ENDED = (S.succeeded, S.failed, S.canceled)
# Where a task is after a report of each kind.
AFTERWARDS: dict[tuple[S, Stage], S] = {
    **{(status, Stage.running): S.generating for status in LIVE},
    **{(status, Stage.unclear): S.generating for status in LIVE},
    **{(status, Stage.succeeded): S.succeeded for status in LIVE},
    **{(status, Stage.failed): S.failed for status in LIVE},
    **{(status, stage): status for status in ENDED for stage in Stage},
}


async def test_every_report_takes_every_state_where_the_table_says(database: Database) -> None:
    owner = await add_key(database)
    tasks = {(status, stage): await add_task(database, owner, status) for status, stage in AFTERWARDS}

    for (_, stage), task in tasks.items():
        await _report(database, task, REPORTS[stage])

    assert {case: (await reread(database, task.id)).status for case, task in tasks.items()} == AFTERWARDS


@pytest.mark.parametrize("via", [ResolvedBy.callback, ResolvedBy.poll, ResolvedBy.replay])
async def test_success_ends_a_task_with_its_clips(database: Database, via: ResolvedBy) -> None:
    task = await _generating(database)

    assert await _report(database, task, SUCCESS, via)

    done = await reread(database, task.id)
    assert (done.status, done.resolved_by, done.charge, done.completed_at) == (S.succeeded, via, Charge.charged, NOON)
    assert (done.due_at, done.fence) == (None, None)
    assert [(clip.index, clip.upstream_clip_id, clip.duration) for clip in done.clips] == [
        (0, "clip-1", 7.5),
        (1, "clip-2", 8.5),
    ]


async def test_repeated_reports_change_nothing(database: Database) -> None:
    task = await _generating(database)
    for report in (RUNNING, PROGRESS, SUCCESS):
        await _report(database, task, report)
        before = await reread(database, task.id)

        assert not await _report(database, task, report)
        assert (await reread(database, task.id)).version == before.version

    assert await event_types(database, task.id) == ["task.created", "task.progressed", "task.succeeded"]


@pytest.mark.parametrize("late", [RUNNING, PROGRESS, UNCLEAR, FAILURE, REFUND])
async def test_late_reports_change_nothing_about_a_finished_task(database: Database, late: Report) -> None:
    task = await _generating(database)
    await _report(database, task, SUCCESS)
    before = await reread(database, task.id)

    assert not await _report(database, task, late)

    after = await reread(database, task.id)
    assert (after.version, after.status, after.charge) == (before.version, S.succeeded, Charge.charged)


async def test_version_rises_by_one_with_every_event(database: Database) -> None:
    task = await _generating(database)
    versions = [task.version]
    for report in (PROGRESS, SUCCESS):
        await _report(database, task, report)
        versions.append((await reread(database, task.id)).version)

    assert versions == [1, 2, 3]


async def test_clip_that_comes_without_audio_is_no_clip_yet(database: Database) -> None:
    task = await _generating(database)

    await _report(database, task, PROGRESS)

    assert [clip.upstream_clip_id for clip in (await reread(database, task.id)).clips] == ["clip-1"]


async def test_known_clip_is_freshened_and_silence_takes_nothing_back(database: Database) -> None:
    task = await _generating(database)
    await _report(database, task, PROGRESS)

    moved = ReportedClip("clip-1", tags="rain", audio_url="https://cdn.example/moved.mp3")
    await _report(database, task, Report(Stage.running, "up-1", (SILENT, moved)))

    [clip] = (await reread(database, task.id)).clips
    assert (clip.title, clip.tags, clip.upstream_audio_url) == ("Rain", "rain", "https://cdn.example/moved.mp3")


async def test_change_of_a_known_clip_is_a_new_version(database: Database) -> None:
    task = await _generating(database)
    await _report(database, task, PROGRESS)
    before = await reread(database, task.id)

    is_applied = await _report(database, task, Report(Stage.running, "up-1", (replace(FIRST, title="Hail"), SILENT)))

    assert is_applied
    assert (await reread(database, task.id)).version == before.version + 1
    assert await event_types(database, task.id) == ["task.created", "task.progressed"]


async def test_clip_reported_after_the_success_is_stored_too(database: Database) -> None:
    task = await _generating(database)
    await _report(database, task, Report(Stage.succeeded, "up-1", (FIRST, SILENT)))
    before = await reread(database, task.id)

    is_applied = await _report(database, task, Report(Stage.succeeded, "up-1", (replace(FIRST, title="Hail"), SECOND)))

    after = await reread(database, task.id)
    assert is_applied
    assert (after.status, after.version) == (S.succeeded, before.version + 1)
    assert [(clip.upstream_clip_id, clip.title) for clip in after.clips] == [("clip-1", "Rain"), ("clip-2", "Rain")]
    assert after.clips[1].due_at == NOON


PARTIAL = Report(Stage.succeeded, "up-1", (FIRST, SILENT))


async def test_success_with_a_silent_clip_counts_at_once_and_the_clip_is_looked_for(database: Database) -> None:
    task = await _generating(database, submitted_at=NOON)

    await _report(database, task, PARTIAL)
    done = await reread(database, task.id)
    await _report(database, task, PARTIAL, ResolvedBy.poll)
    await _report(database, task, Report(Stage.running, "up-1"), ResolvedBy.poll)
    waiting = await reread(database, task.id)
    await _report(database, task, SUCCESS, ResolvedBy.poll)
    found = await reread(database, task.id)

    assert (done.status, done.completed_at, len(done.clips)) == (S.succeeded, NOON, 1)
    assert done.due_at is not None
    assert NOON < done.due_at < NOON + timedelta(seconds=4)
    assert (waiting.due_at, waiting.version) == (done.due_at, done.version)
    assert (found.status, found.due_at, found.version) == (S.succeeded, None, done.version + 1)
    assert [clip.upstream_clip_id for clip in found.clips] == ["clip-1", "clip-2"]
    assert await event_types(database, task.id) == ["task.created", "task.succeeded"]


async def test_clip_that_a_repeated_success_names_for_the_first_time_is_looked_for(database: Database) -> None:
    task = await _generating(database, submitted_at=NOON)
    await _report(database, task, Report(Stage.succeeded, "up-1", (FIRST,)))

    await _report(database, task, PARTIAL)

    assert (await reread(database, task.id)).due_at is not None


@pytest.mark.parametrize("old", [PROGRESS, UNCLEAR, replace(PROGRESS, stage=Stage.succeeded)])
async def test_old_report_of_a_silent_clip_starts_no_polls(database: Database, old: Report) -> None:
    task = await _generating(database, submitted_at=NOON)
    await _report(database, task, SUCCESS)

    await _report(database, task, old)

    assert (await reread(database, task.id)).due_at is None


async def test_silent_clip_is_looked_for_no_longer_than_the_upstream_keeps_it(database: Database) -> None:
    task = await _generating(database, submitted_at=NOON - timedelta(days=15))

    await _report(database, task, PARTIAL)

    assert (await reread(database, task.id)).due_at is None


async def test_clips_without_ids_are_known_by_their_places(database: Database) -> None:
    task = await _generating(database)
    nameless = tuple(ReportedClip(audio_url=f"https://cdn.example/{number}.mp3") for number in range(2))

    await _report(database, task, Report(Stage.running, "up-1", nameless[:1]))
    await _report(database, task, Report(Stage.succeeded, "up-1", nameless))

    clips = (await reread(database, task.id)).clips
    assert [clip.upstream_audio_url for clip in clips] == [clip.audio_url for clip in nameless]


async def test_unconfirmed_task_is_adopted_by_the_first_report(database: Database) -> None:
    task = await _task(database, S.unconfirmed, charge=Charge.possible, was_unconfirmed=True)

    await _report(database, task, RUNNING)
    adopted = await reread(database, task.id)
    await _report(database, task, SUCCESS, ResolvedBy.poll)
    done = await reread(database, task.id)

    assert (adopted.status, adopted.upstream_task_id, adopted.charge) == (S.generating, "up-1", Charge.charged)
    assert (done.status, done.resolved_by) == (S.succeeded, ResolvedBy.adoption)


async def test_report_may_come_before_the_answer_to_the_submit(database: Database) -> None:
    task = await _task(database, S.submitting, charge=Charge.possible, fence="of the submit")

    await _report(database, task, SUCCESS)

    done = await reread(database, task.id)
    assert (done.status, done.upstream_task_id, done.resolved_by) == (S.succeeded, "up-1", ResolvedBy.callback)
    assert await event_types(database, task.id) == ["task.created", "task.submitted", "task.succeeded"]


async def test_upstream_id_that_comes_after_the_first_report_is_stored(database: Database) -> None:
    task = await _task(database, S.submitting, charge=Charge.possible)
    await _report(database, task, Report(Stage.running))

    assert await _report(database, task, RUNNING)

    assert (await reread(database, task.id)).upstream_task_id == "up-1"


@pytest.mark.parametrize("code", [ErrorCode.outcome_unknown, ErrorCode.deadline_exceeded])
async def test_late_success_revives_what_we_gave_up(database: Database, code: ErrorCode) -> None:
    task = await _task(database, S.failed, error_code=code, error_message="Too late.", charge=Charge.possible)

    await _report(database, task, SUCCESS)

    done = await reread(database, task.id)
    assert (done.status, done.error_code, done.error_message, done.charge) == (S.succeeded, None, None, Charge.charged)
    assert await event_types(database, task.id) == ["task.created", "task.revived", "task.succeeded"]


@pytest.mark.parametrize("late", [RUNNING, PROGRESS, FAILURE, UNCLEAR])
async def test_nothing_but_a_success_revives(database: Database, late: Report) -> None:
    task = await _task(database, S.failed, error_code=ErrorCode.deadline_exceeded, upstream_task_id="up-1")

    assert not await _report(database, task, late)

    assert (await reread(database, task.id)).status is S.failed


@pytest.mark.parametrize("code", [ErrorCode.upstream_failed, ErrorCode.invalid_request, ErrorCode.audio_missing])
async def test_what_the_upstream_failed_stays_failed(database: Database, code: ErrorCode) -> None:
    task = await _task(database, S.failed, error_code=code, upstream_task_id="up-1")

    assert not await _report(database, task, SUCCESS)

    assert (await reread(database, task.id)).error_code is code


async def test_reported_failure_has_our_code_and_their_message(database: Database) -> None:
    task = await _generating(database)

    await _report(database, task, FAILURE)

    failed = await reread(database, task.id)
    assert (failed.error_code, failed.error_message, failed.upstream_code) == (
        ErrorCode.upstream_failed,
        "It broke.",
        500,
    )
    assert failed.charge is Charge.charged


async def test_refund_is_noted_even_when_it_comes_late(database: Database) -> None:
    owner = await add_key(database)
    at_once = await add_task(database, owner, S.generating)
    canceled = await add_task(database, owner, S.canceled, upstream_task_id="up-1")
    given_up = await add_task(database, owner, S.failed, error_code=ErrorCode.deadline_exceeded)

    for task in (at_once, canceled, given_up):
        assert await _report(database, task, REFUND)
        assert not await _report(database, task, FAILURE)

    after = [await reread(database, task.id) for task in (at_once, canceled, given_up)]
    assert [(task.status, task.charge) for task in after] == [
        (S.failed, Charge.refunded),
        (S.canceled, Charge.refunded),
        (S.failed, Charge.refunded),
    ]


@pytest.mark.parametrize("charge", [Charge.none, Charge.possible])
async def test_canceled_task_that_the_upstream_works_on_is_charged(database: Database, charge: Charge) -> None:
    task = await _task(database, S.canceled, charge=charge)

    assert await _report(database, task, RUNNING)

    after = await reread(database, task.id)
    assert (after.status, after.charge, after.upstream_task_id) == (S.canceled, Charge.charged, "up-1")


async def test_audio_that_never_appears_fails_the_task_after_enough_polls(database: Database) -> None:
    task = await _generating(database)
    for _ in range(MAX_AUDIO_CHECKS):
        await _report(database, task, UNCLEAR, ResolvedBy.poll)
    waiting = (await reread(database, task.id)).status

    await _report(database, task, UNCLEAR, ResolvedBy.poll)

    failed = await reread(database, task.id)
    assert (waiting, failed.status, failed.error_code) == (S.generating, S.failed, ErrorCode.audio_missing)


async def test_eager_polls_give_audio_no_less_time_to_appear(database: Database) -> None:
    task = await _generating(database, submitted_at=NOON - timedelta(seconds=62))

    for _ in range(MAX_AUDIO_CHECKS + 1):
        await _report(database, task, UNCLEAR, ResolvedBy.poll, public_url=None)

    assert (await reread(database, task.id)).status is S.generating


async def test_one_clip_with_audio_is_a_success_after_enough_polls(database: Database) -> None:
    task = await _generating(database, submitted_at=NOON - timedelta(minutes=20))
    await _report(database, task, PROGRESS)

    for _ in range(MAX_AUDIO_CHECKS + 1):
        await _report(database, task, replace(PROGRESS, stage=Stage.unclear), ResolvedBy.poll)

    after = await reread(database, task.id)
    assert after.status is S.succeeded
    assert after.due_at is not None


async def test_callbacks_without_audio_schedule_a_poll_and_use_up_no_check(database: Database) -> None:
    task = await _generating(database, due_at=NOON + timedelta(hours=1))

    for _ in range(MAX_AUDIO_CHECKS + 2):
        await _report(database, task, UNCLEAR, ResolvedBy.callback)

    after = await reread(database, task.id)
    assert (after.status, after.audio_checks, after.due_at) == (S.generating, 0, NOON + MIN_POLL_INTERVAL)


@pytest.mark.parametrize("final", [SUCCESS, FAILURE, UNCLEAR])
async def test_where_callbacks_are_not_trusted_a_poll_decides(database: Database, final: Report) -> None:
    task = await _generating(database, due_at=NOON + timedelta(hours=1))

    await _report(database, task, final, ResolvedBy.callback, callback_trust="pull")
    believed = await reread(database, task.id)
    await _report(database, task, SUCCESS, ResolvedBy.poll, callback_trust="pull")
    done = await reread(database, task.id)

    assert (believed.status, believed.clips, believed.due_at) == (S.generating, [], NOON + MIN_POLL_INTERVAL)
    assert (done.status, done.resolved_by) == (S.succeeded, ResolvedBy.poll)


async def _task(database: Database, status: S, **columns: Any) -> Task:
    return await add_task(database, await add_key(database), status, **columns)


async def _generating(database: Database, **columns: Any) -> Task:
    return await _task(database, S.generating, upstream_task_id="up-1", **columns)


async def _report(
    database: Database, task: Task, report: Report, via: ResolvedBy = ResolvedBy.callback, **settings: Any
) -> bool:
    """Apply a report as callbacks and polls do; return whether it was applied."""
    lifecycle = lifecycle_of(database, **settings)
    async with database.writes.begin() as session:
        locked = await lock_task(session, task.id)
        assert locked
        return await lifecycle.apply_report(session, locked, report, NOON, via) is CallbackOutcome.applied
