"""What happened to a task as bars, and why it waits, of rows that were never stored."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.console.task_repository import Pace, StoredCallback, TaskRows
from app.console.task_view import curl_of, facts_of, parameters_of, pretty, view_callback, why_it_waits
from app.console.timeline import LATER, WIDTH, Bar, bars_of, timeline_of
from app.enums import CallbackOutcome, Charge, DeliveryStatus, ErrorCode, EventType, Priority, TaskStatus, WebhookType
from app.models import Clip, Delivery, DeliveryAttempt, Event, Task
from app.upstream.hold import Hold
from app.upstream.types import HoldReason, Report, ReportedClip, Stage
from tests.support.clock import MORNING
from tests.support.settings import settings_of

S, E = TaskStatus, EventType
SETTINGS = settings_of("sqlite+aiosqlite:///unused.db", upstream_rate="20/10", submit_deadline=900, task_deadline=1800)


def at(seconds: float) -> datetime:
    return MORNING + timedelta(seconds=seconds)


def call(kind: str, start: float, took: float, outcome: str, code: int | None = None) -> dict[str, Any]:
    found = {"kind": kind, "started_at": at(start).isoformat(), "duration_ms": round(took * 1000), "outcome": outcome}
    return found if code is None else {**found, "code": code}


def task_of(status: TaskStatus, **columns: Any) -> Task:
    ordered = {"prompt": "rain", "model": "V5", "sound_loop": False, "sound_key": "Any", "grab_lyrics": False}
    known: dict[str, Any] = {
        "id": 32 * "0", "api_key_id": 32 * "1", "status": status, "created_at": MORNING, "updated_at": MORNING,
        "labels": {}, "charge": Charge.none, "posts": 0, "attempts": 0, "was_unconfirmed": False, "clips": [],
    }  # fmt: skip
    return Task(**{**ordered, **known, **columns})


def event(kind: EventType, seconds: float) -> Event:
    return Event(type=kind, created_at=at(seconds), data={}, version=1)


def rows_of(task: Task, now: float, **rows: Any) -> TaskRows:
    empty: dict[str, Any] = {"events": [], "callbacks": [], "deliveries": [], "attempts": {}, "counts": {}}
    return TaskRows(**{"now": at(now), "task": task, "key_name": "tests", **empty, **rows})


def spans(rows: TaskRows, lane: str) -> list[tuple[float, float | None, str]]:
    """Start, end and outcome of each bar of a lane, in seconds."""
    return [(_seconds(bar.start) or 0, _seconds(bar.end), bar.outcome) for bar in bars_of(rows) if bar.lane == lane]


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else (moment - MORNING).total_seconds()


def titles(rows: TaskRows) -> list[str]:
    return [reason.title for reason in why_it_waits(rows, SETTINGS)]


def test_task_that_succeeds_at_once_has_a_bar_for_each_step() -> None:
    calls = [call("submit", 2, 1, "ok", 200), call("poll", 20, 0.5, "pending")]
    clip = Clip(index=0, created_at=at(30), archive_started_at=at(31), archived_at=at(33), image_archived_at=at(34))
    task = task_of(S.succeeded, upstream_calls=calls, submitted_at=at(2), completed_at=at(30), clips=[clip])
    callback = StoredCallback("1", at(30), CallbackOutcome.applied, 2, b"{}")
    rows = rows_of(task, 100, events=[event(E.task_submitted, 3), event(E.task_succeeded, 30)], callbacks=[callback])

    assert spans(rows, "Queue") == [(0, 2, "")]
    assert spans(rows, "Submit") == [(2, 3, "answered")]
    assert spans(rows, "Upstream") == [(3, 30, "succeeded")]
    assert spans(rows, "Callbacks") == [(30, 30, "applied")]
    assert spans(rows, "Polls") == [(20, 20.5, "the upstream has no record yet")]
    assert spans(rows, "Clip 0") == [(31, 33, "stored"), (34, 34, "stored")]
    assert titles(rows) == []


def test_each_wait_in_the_queue_has_a_bar_that_says_why() -> None:
    calls = [call("submit", 2, 1, "throttled", 405), call("submit", 10, 1, "held", 429)]
    rows = rows_of(task_of(S.queued, upstream_calls=calls, due_at=at(0)), 60)

    assert spans(rows, "Queue") == [
        (0, 2, ""),
        (3, 10, "throttled, nothing was created"),
        (11, None, "refused, submits are held"),
    ]
    assert spans(rows, "Submit") == [
        (2, 3, "throttled, nothing was created (code 405)"),
        (10, 11, "refused, submits are held (code 429)"),
    ]


def test_submit_whose_process_died_is_shown_until_its_lease_ended() -> None:
    task = task_of(S.unconfirmed, submitted_at=at(5), was_unconfirmed=True)
    rows = rows_of(task, 90, events=[event(E.task_unconfirmed, 65)])

    assert spans(rows, "Queue") == [(0, 5, "")]
    assert spans(rows, "Submit") == [(5, 65, "its process died")]
    assert spans(rows, "Unconfirmed") == [(65, None, "")]


def test_submit_that_lost_its_answer_is_shown_once() -> None:
    # Clocks differ by a moment.
    calls = [call("submit", 4.999, 15, "ambiguous")]
    task = task_of(S.unconfirmed, submitted_at=at(5), was_unconfirmed=True, upstream_calls=calls)

    rows = rows_of(task, 90, events=[event(E.task_unconfirmed, 20)])

    assert spans(rows, "Submit") == [(4.999, 19.999, "the answer was lost")]


def test_submit_is_under_way() -> None:
    rows = rows_of(task_of(S.submitting, submitted_at=at(5), due_at=at(80)), 9)

    assert spans(rows, "Queue") == [(0, 5, "")]
    assert spans(rows, "Submit") == [(5, None, "the answer is awaited")]
    [reason] = why_it_waits(rows, SETTINGS)
    assert reason.at == at(80)


def test_revived_task_has_been_with_the_upstream_twice() -> None:
    task = task_of(S.succeeded, submitted_at=at(1), completed_at=at(3000), was_unconfirmed=True)
    happened = [
        event(E.task_unconfirmed, 10), event(E.task_submitted, 20), event(E.task_failed, 1801),
        event(E.task_revived, 2990), event(E.task_succeeded, 3000),
    ]  # fmt: skip
    rows = rows_of(task, 4000, events=happened)

    assert spans(rows, "Unconfirmed") == [(10, 20, "adopted")]
    assert spans(rows, "Upstream") == [(20, 1801, "failed"), (2990, 3000, "succeeded")]


def test_unconfirmed_task_that_was_proved_absent_is_queued_again() -> None:
    calls = [call("submit", 1, 70, "throttled", 405)]
    task = task_of(S.queued, upstream_calls=calls, was_unconfirmed=True, updated_at=at(71), due_at=at(75))
    rows = rows_of(task, 73, events=[event(E.task_unconfirmed, 60)], pace=Pace(20), position=1)

    assert spans(rows, "Unconfirmed") == [(60, 71, "proved not to be there")]
    assert spans(rows, "Queue")[-1] == (71, None, "throttled, nothing was created")
    assert titles(rows) == ["It is submitted again later."]


def test_task_canceled_in_the_queue_waited_until_then() -> None:
    rows = rows_of(task_of(S.canceled, completed_at=at(7)), 100)

    assert spans(rows, "Queue") == [(0, 7, "")]
    assert [bar.lane for bar in bars_of(rows)] == ["Queue"]


@pytest.mark.parametrize(
    ("columns", "rows", "title"),
    [
        ({}, {"pace": Pace(20), "position": 1}, "It is sent in a moment."),
        ({}, {"pace": Pace(0, at(63)), "position": 3}, "It waits for the upstream's pace."),
        ({}, {"pace": Pace(2, at(0)), "position": 3}, "It waits for the upstream's pace."),
        ({}, {"pace": Pace(20, at(0), at(70)), "position": 1}, "The upstream asked for a pause."),
        ({"due_at": at(10)}, {"pace": Pace(20), "position": 1}, "No worker takes it."),
        (
            {"due_at": at(10)},
            {"pace": Pace(20), "position": 1, "hold": Hold(HoldReason.bad_key, at(30), None)},
            "All submits are held since 08:00:30 UTC.",
        ),
    ],
)
def test_queued_task_waits_for_one_reason(columns: dict[str, Any], rows: dict[str, Any], title: str) -> None:
    assert titles(rows_of(task_of(S.queued, **{"due_at": at(59), **columns}), 60, **rows)) == [title]


@pytest.mark.parametrize(
    ("position", "free", "starts_in"), [(1, 0, 3), (20, 0, 3), (21, 0, 13), (45, 4, 23), (25, 5, 3)]
)
def test_turn_comes_with_the_slots_of_the_ring(position: int, free: int, starts_in: float) -> None:
    rows = rows_of(task_of(S.queued, due_at=at(59)), 60, position=position, pace=Pace(free, at(63)))
    [reason] = why_it_waits(rows, SETTINGS)

    assert reason.at == at(60 + starts_in)
    assert f"{free} of 20 slots in 10 s are free" in reason.detail
    assert ("next in line" if position == 1 else f"number {position} in line") in reason.detail


def test_task_with_the_upstream_waits_for_a_callback_or_poll_until_its_deadline() -> None:
    task = task_of(S.generating, submitted_at=at(0), upstream_task_id="up-1", due_at=at(45))

    reasons = why_it_waits(rows_of(task, 20), SETTINGS)
    overdue, _ = why_it_waits(rows_of(task, 100), SETTINGS)

    assert [reason.at for reason in reasons] == [at(45), at(1800)]
    assert [reason.advice for reason in reasons] == ["", ""]
    assert (overdue.tone, "worker" in overdue.advice) == ("bad", True)


def test_unconfirmed_task_waits_for_its_adoption_until_the_deadline() -> None:
    rows = rows_of(task_of(S.unconfirmed, submitted_at=at(0), was_unconfirmed=True), 20)

    assert [(reason.title, reason.at) for reason in why_it_waits(rows, SETTINGS)] == [
        ("It waits to be adopted.", at(900))
    ]


def test_given_up_task_is_still_asked_about() -> None:
    task = task_of(S.failed, error_code=ErrorCode.deadline_exceeded, due_at=at(5000), completed_at=at(1800))

    assert titles(rows_of(task, 2000)) == ["The upstream is still asked about it."]


def test_clip_that_is_not_stored_says_when_it_is_tried_next_and_what_went_wrong() -> None:
    clip = Clip(index=1, created_at=at(30), due_at=at(50), attempts=2, archive_error="the host answered 403")
    task = task_of(S.succeeded, submitted_at=at(2), completed_at=at(30), clips=[clip])

    [reason] = why_it_waits(rows_of(task, 45), SETTINGS)

    assert (reason.title, reason.at) == ("Clip 1: the audio is not stored yet.", at(50))
    assert "the host answered 403" in reason.detail


def test_pending_webhooks_say_when_the_next_attempt_is() -> None:
    pending = {"status": DeliveryStatus.pending, "event_type": WebhookType.task_failed, "url": "http://h/x"}
    deliveries = [
        Delivery(id="1", attempts_made=3, due_at=at(90), **pending),
        Delivery(id="2", attempts_made=0, due_at=at(80), **pending),
        Delivery(id="3", attempts_made=1, due_at=None, **{**pending, "status": DeliveryStatus.delivered}),
    ]
    rows = rows_of(task_of(S.failed, completed_at=at(30)), 60, deliveries=deliveries)

    [reason] = why_it_waits(rows, SETTINGS)

    assert (reason.title, reason.at) == ("2 webhooks are not delivered yet.", at(80))
    assert reason.detail == "1 of 2 failed before."


def attempts_at(*moments: float) -> Mapping[str, list[DeliveryAttempt]]:
    answers: dict[str, Any] = {"duration_ms": 100, "status_code": 500}
    return {"1": [DeliveryAttempt(delivery_id="1", attempted_at=at(moment), **answers) for moment in moments]}


def test_what_came_days_later_stands_beyond_the_scale() -> None:
    delivery = Delivery(
        id="1", attempts_made=3, status=DeliveryStatus.given_up, event_type=WebhookType.task_failed, url="http://h/x"
    )
    task = task_of(S.failed, completed_at=at(60))
    rows = rows_of(task, 9e5, deliveries=[delivery], attempts=attempts_at(61, 3600, 86400), counts={})

    timeline = timeline_of(rows)
    [queue, webhook] = timeline.lanes

    assert (timeline.end, timeline.has_later) == (at(61.1), True)
    assert queue.bars[0].width == pytest.approx((WIDTH - LATER) * 60 / 61.1, abs=0.1)
    assert [placed.is_later for placed in webhook.bars] == [False, True, True]
    places = [placed.x for placed in webhook.bars]
    assert places == sorted(places)
    assert places[0] < WIDTH - LATER < places[1]


def test_lane_says_what_came_of_all_its_bars_or_what_goes_on() -> None:
    stored = Clip(index=0, created_at=at(3), archived_at=at(4))
    failing = Clip(index=1, created_at=at(3), archive_error="HTTP 404", image_archived_at=at(5))
    polls = [call("poll", start, 0.1, outcome) for start, outcome in enumerate(("failed", "failed", "ok"))]
    task = task_of(S.succeeded, submitted_at=at(1), completed_at=at(3), clips=[stored, failing], upstream_calls=polls)

    said = {lane.name: lane.outcome for lane in timeline_of(rows_of(task, 9)).lanes}

    assert said == {"Queue": "", "Polls": "2 failed, 1 answered", "Clip 0": "stored", "Clip 1": "fails"}


def test_every_bar_is_inside_the_picture() -> None:
    task = task_of(S.queued, upstream_calls=[call("submit", -1, 0, "held"), call("submit", 5, 1, "throttled")])
    for now in (0, 0.001, 6, 1e7):
        timeline = timeline_of(rows_of(task, now))
        for placed in (placed for lane in timeline.lanes for placed in lane.bars):
            assert placed.x >= 0
            assert placed.width > 0
            assert placed.x + placed.width <= WIDTH


def test_open_bar_lasts_until_now() -> None:
    assert Bar("Queue", "", at(5), None).lasted(at(9)) == timedelta(seconds=4)


def test_callback_stands_beside_what_it_reports() -> None:
    clip = ReportedClip("c-1", title="Rain", audio_url="https://h/a")
    report = Report(Stage.failed, "up-1", (clip,), 531, "no", ErrorCode.upstream_failed, refunded=True)
    view = view_callback(StoredCallback("1", at(0), CallbackOutcome.stale, 7, b'{"a":1}'), report)

    assert view.text == '{\n  "a": 1\n}'
    assert dict(view.facts) == {
        "stage": "failed", "upstream_task_id": "up-1", "code": "531", "message": "no", "error_code": "upstream_failed",
        "refunded": "True", "clips[0].upstream_clip_id": "c-1", "clips[0].title": "Rain",
        "clips[0].audio_url": "https://h/a",
    }  # fmt: skip
    assert list(facts_of(Report(Stage.running))) == [("stage", "running")]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"plain", "plain"),
        (b"\xff\x00", "\\xff\x00"),
        (b"[" * 100_000, "[" * 100_000),
        (b'{"a": NaN}', '{\n  "a": NaN\n}'),
        (b'"cut \\ud83d"', '"cut \\ud83d"'),
        (b"[" * 300 + b"]" * 300, "[" * 300 + "]" * 300),
    ],
)
def test_any_body_is_shown(body: bytes, text: str) -> None:
    assert pretty(body) == text


def test_command_orders_the_same_whatever_it_says() -> None:
    prompt = 'it\'s $HOME; `rm -rf /` "x" \\ é'
    task = task_of(
        S.queued,
        prompt=prompt,
        priority=Priority.normal,
        sound_tempo=90,
        labels={"a": "'"},
        webhook_url="https://h/x?a=1&b=2",
    )

    command = curl_of(task, "https://sounds.example").splitlines()[0]

    parts = shlex.split(command)
    assert parts[:2] == ["curl", "https://sounds.example/v1/tasks"]
    assert "Authorization: Bearer $KEY" in parts
    assert json.loads(parts[-1]) == parameters_of(task)
    assert parameters_of(task) == {
        "prompt": prompt, "model": "V5", "sound_tempo": 90, "metadata": {"a": "'"},
        "webhook_url": "https://h/x?a=1&b=2",
    }  # fmt: skip
