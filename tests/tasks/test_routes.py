"""Creating, reading, listing, canceling and deleting tasks."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from app.database.base import Base
from app.enums import CallbackOutcome, TaskStatus
from app.models import Callback, Clip, Event, StoredObject, Task, TaskLabel
from app.tasks.order_schemas import MAX_LABELS
from app.tasks.queue.positions import QueuePositions
from app.tasks.schemas import MAX_QUEUE_POSITION
from app.tasks.transitions import FINAL
from app.web.pagination import encode_cursor
from tests.support.api import create_task
from tests.support.clock import MORNING
from tests.support.filling import Owner, add_owner, fill_queued
from tests.support.rows import add_key, add_task, event_types, reread
from tests.support.service import Service, client_with_key
from tests.support.statements import COMMIT, recorded
from tests.support.wait import eventually

MINIMAL: dict[str, Any] = {"prompt": "soft rain"}
MANY_LABELS = {f"key{number}": "value" for number in range(17)}

# What cannot be accepted, and where it is wrong.
REFUSED: list[tuple[Any, str]] = [
    ({}, "#/prompt"),
    ({"prompt": ""}, "#/prompt"),
    ({"prompt": "x" * 501}, "#/prompt"),
    ({"prompt": "a\0b"}, "#/prompt"),
    ({"prompt": 7}, "#/prompt"),
    ({"prompt": None}, "#/prompt"),
    ({**MINIMAL, "model": "V9"}, "#/model"),
    ({**MINIMAL, "model": ""}, "#/model"),
    ({**MINIMAL, "sound_loop": 1}, "#/sound_loop"),
    ({**MINIMAL, "sound_loop": None}, "#/sound_loop"),
    ({**MINIMAL, "sound_tempo": 0}, "#/sound_tempo"),
    ({**MINIMAL, "sound_tempo": 301}, "#/sound_tempo"),
    ({**MINIMAL, "sound_tempo": 90.5}, "#/sound_tempo"),
    ({**MINIMAL, "sound_tempo": "90"}, "#/sound_tempo"),
    ({**MINIMAL, "sound_tempo": True}, "#/sound_tempo"),
    ({**MINIMAL, "sound_tempo": 2**63}, "#/sound_tempo"),
    ({**MINIMAL, "sound_key": "H"}, "#/sound_key"),
    ({**MINIMAL, "sound_key": "am"}, "#/sound_key"),
    ({**MINIMAL, "grab_lyrics": "true"}, "#/grab_lyrics"),
    ({**MINIMAL, "metadata": MANY_LABELS}, "#/metadata"),
    ({**MINIMAL, "metadata": {"k" * 65: "v"}}, f"#/metadata/{'k' * 65}"),
    ({**MINIMAL, "metadata": {"": "v"}}, "#/metadata/"),
    ({**MINIMAL, "metadata": {"k": "v" * 513}}, "#/metadata/k"),
    ({**MINIMAL, "metadata": {"k": 1}}, "#/metadata/k"),
    ({**MINIMAL, "metadata": {"k": "\0"}}, "#/metadata/k"),
    ({**MINIMAL, "volume": 11}, "#/volume"),
    ([MINIMAL], "#"),
    ("soft rain", "#"),
]
BAD_QUERIES = [
    "status=done",
    "created_after=yesterday",
    "created_after=2026-01-01T00:00:00",
    "limit=0",
    "limit=201",
    "limit=ten",
    "cursor=nonsense",
    f"cursor={encode_cursor('/v1/tasks', '2026', 'x', 'y')}",
    f"cursor={encode_cursor('/v1/tasks', 'yesterday', 'x')}",
    f"cursor={encode_cursor('/v1/tasks', '2026-01-01', 'x')}",
    f"cursor={encode_cursor('/v1/deliveries', '2026-01-01T00:00:00+00:00', 'x')}",
]
HOSTILE_LABELS = ['a"b', "a.b", "a'b", "a\\b", "[0]", "1", "$", "%s", ":a", "{a}", 'a"]', "\U0001f600", "é", "a\nb"]


async def test_text_with_nul_is_refused_with_a_reason(service: Service) -> None:
    answer = await service.client.post("/v1/tasks", json={"prompt": "rain\0"})

    assert answer.json()["errors"] == [{"pointer": "#/prompt", "detail": "This text must not contain NUL"}]


async def test_task_is_stored_before_the_response(service: Service) -> None:
    answer = await service.client.post("/v1/tasks", json={"prompt": "soft rain"})

    task = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/tasks/{task['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["retry-after"]) > 0
    assert (await reread(service.database, task["id"])).status is TaskStatus.queued


async def test_task_has_the_defaults_of_the_contract(service: Service) -> None:
    task = await create_task(service.client, "soft rain")

    assert {name: value for name, value in task.items() if value is None} == dict.fromkeys(
        [
            "sound_tempo",
            "webhook_url",
            "upstream_task_id",
            "resolved_by",
            "error",
            "submitted_at",
            "completed_at",
        ]
    )
    assert (task["status"], task["version"], task["charge"]) == ("queued", 1, "none")
    assert (task["model"], task["sound_loop"], task["sound_key"], task["grab_lyrics"]) == ("V5", False, "Any", False)
    assert (task["metadata"], task["clips"], task["queue_position"]) == ({}, [], 1)


async def test_task_is_stored_as_it_was_requested(service: Service) -> None:
    given: dict[str, Any] = {
        "prompt": "\U0001f327" * 500,
        "model": "V5_5",
        "sound_loop": True,
        "sound_tempo": 300,
        "sound_key": "F#m",
        "grab_lyrics": True,
        "metadata": {"k" * 64: "é" * 512, "empty": ""},
    }

    task = await create_task(service.client, **given)

    snapshot = (await service.client.get(f"/v1/tasks/{task['id']}")).json()
    assert {name: snapshot[name] for name in given} == given


async def test_what_cannot_be_accepted_is_refused_where_it_is_wrong(service: Service) -> None:
    answers = [await service.client.post("/v1/tasks", json=body) for body, _ in REFUSED]

    assert [(answer.status_code, _pointers(answer)) for answer in answers] == [(422, [place]) for _, place in REFUSED]
    assert await _count(service, Event) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_request_that_a_deadlock_undid_is_made_again(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    async with service.database.writes.begin() as session:
        session.add(StoredObject(key="a-file", attempts=0))
        await session.flush()
        session.add(Clip(task_id=task.id, index=0, created_at=MORNING, attempts=0, storage_key="a-file"))
    locking = select(StoredObject).where(StoredObject.key == "a-file").with_for_update()
    async with service.database.writes.begin() as other:
        # Of the two, the request is the one that looks for the deadlock, and gives way.
        await other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        await other.execute(locking)
        deleting = asyncio.create_task(service.client.delete(f"/v1/tasks/{task.id}"))
        await _until_a_lock_is_waited_for(service)
        await other.execute(select(Task).where(Task.id == task.id).with_for_update())
    answer = await deleting

    assert answer.status_code == 204


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("action", ["cancel", "callback"])
async def test_change_that_waited_for_another_is_dated_after_it(service: Service, action: str) -> None:
    task = await service.add_task(TaskStatus.generating, upstream_task_id="up-1")
    path = f"/v1/tasks/{task.id}/cancel" if action == "cancel" else service.callback_path(task.id)
    report = {"code": 200, "msg": "", "data": {"callbackType": "error", "task_id": "up-1", "data": []}}
    async with service.database.writes.begin() as other:
        await other.execute(select(Task).where(Task.id == task.id).with_for_update())
        changing = asyncio.create_task(service.client.post(path, json=report if action == "callback" else None))
        if action == "cancel":
            await _until_a_lock_is_waited_for(service)
        else:
            # A callback tries again, without a connection in between.
            assert (await asyncio.wait([changing], timeout=0.3))[1]
        earlier = await service.database.now(other)

    assert (await changing).status_code == 200
    changed = await reread(service.database, task.id)
    assert changed.status in FINAL
    assert changed.updated_at > earlier


async def test_no_request_holds_a_connection_while_it_waits_for_another(service: Service) -> None:
    orders = [service.client.post("/v1/tasks", json=MINIMAL) for _ in range(60)]

    answers = await asyncio.gather(*orders)

    assert Counter(answer.status_code for answer in answers) == {202: 60}


async def test_queue_positions_count_the_submits_that_leave_before(service: Service) -> None:
    ids = [(await create_task(service.client))["id"] for _ in range(3)]

    tasks = [(await service.client.get(f"/v1/tasks/{task_id}")).json() for task_id in ids]
    listed = (await service.client.get("/v1/tasks")).json()["items"]

    assert [task["queue_position"] for task in tasks] == [1, 2, 3]
    assert [task["queue_position"] for task in listed] == [3, 2, 1]


async def test_queue_position_is_counted_up_to_a_thousand(service: Service) -> None:
    task = await service.add_task(TaskStatus.submitting)
    await fill_queued(service.database, [Owner(task.api_key_id, "")], MAX_QUEUE_POSITION - 2)

    placed = [await create_task(service.client) for _ in range(4)]
    listed = (await service.client.get("/v1/tasks?limit=4")).json()["items"]

    assert [task["queue_position"] for task in placed] == [999, 1000, 1000, 1000]
    assert [task["queue_position"] for task in listed] == [1000, 1000, 1000, 999]


async def test_task_that_left_the_queue_since_it_was_read_was_next(service: Service) -> None:
    await fill_queued(service.database, [await _another_owner(service)], MAX_QUEUE_POSITION)
    gone = await service.add_task(TaskStatus.submitting, due_at=MORNING)
    gone.status = TaskStatus.queued

    async with service.database.reads() as session:
        assert await QueuePositions(service.services.settings).read(session, [gone]) == {gone.id: 1}


async def test_queue_position_is_read_after_the_commit_of_the_task(service: Service) -> None:
    with recorded(service.database) as statements:
        await create_task(service.client)

    stored = max(number for number, statement in enumerate(statements) if statement.sql.startswith("INSERT"))
    counted = min(number for number, statement in enumerate(statements) if "SELECT count" in statement.sql)
    assert COMMIT in statements[stored:counted]


async def test_unchanged_task_is_not_sent_again(service: Service) -> None:
    path = f"/v1/tasks/{(await service.add_task()).id}"
    etag = (await service.client.get(path)).headers["etag"]

    known = await service.client.get(path, headers={"If-None-Match": f'"other", {etag}'})
    any_at_all = await service.client.get(path, headers={"If-None-Match": "*"})
    await service.client.post(f"{path}/cancel")
    changed = await service.client.get(path, headers={"If-None-Match": etag})

    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    assert any_at_all.status_code == 304
    assert (changed.status_code, changed.json()["status"]) == (200, "canceled")


async def test_another_keys_task_reads_like_one_that_does_not_exist(service: Service) -> None:
    theirs = (await add_task(service.database, await add_key(service.database, "another"))).id
    calls = [("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/events"), ("GET", "/callbacks")]

    answers = [
        [await service.client.request(method, f"/v1/tasks/{task_id}{path}") for method, path in calls]
        for task_id in (theirs, "0" * 32, "x", "%F0%9F%98%80", "a" * 400)
    ]

    assert {answer.status_code for row in answers for answer in row} == {404}
    assert len({answer.content for row in answers for answer in row}) == 1


async def test_list_is_newest_first_and_stable_under_inserts(service: Service) -> None:
    before = [(await service.add_task(now=MORNING + timedelta(minutes=number // 2))).id for number in range(7)]
    first = (await service.client.get("/v1/tasks?limit=3")).json()
    await service.add_task(now=MORNING + timedelta(hours=1))

    pages, cursor = [first], first["next_cursor"]
    while cursor:
        pages.append((await service.client.get("/v1/tasks", params={"limit": 3, "cursor": cursor})).json())
        cursor = pages[-1]["next_cursor"]

    assert [task["id"] for page in pages for task in page["items"]] == list(reversed(before))
    assert [len(page["items"]) for page in pages] == [3, 3, 1]


async def test_next_page_is_linked_with_the_same_filters(service: Service) -> None:
    for _ in range(2):
        await create_task(service.client, metadata={"user": "7"})

    first = await service.client.get("/v1/tasks?limit=1&metadata.user=7")
    second = await service.client.get(first.links["next"]["url"])

    assert first.json()["items"][0]["id"] > second.json()["items"][0]["id"]
    assert second.links == {}


async def test_list_can_be_narrowed(service: Service) -> None:
    old = await service.add_task(TaskStatus.succeeded, model="V5_5", labels={"user": "7"})
    new = await service.add_task(TaskStatus.generating, now=MORNING + timedelta(hours=1), labels={"user": "8"})
    noon = "2026-03-01T09:30:00%2B01:00"

    async def found(query: str) -> list[str]:
        answer = (await service.client.get(f"/v1/tasks?{query}")).raise_for_status()
        return [task["id"] for task in answer.json()["items"]]

    assert await found("status=succeeded") == [old.id]
    assert await found("model=V5_5") == [old.id]
    assert await found(f"created_after={noon}") == [new.id]
    assert await found(f"created_before={noon}") == [old.id]
    assert await found("metadata.user=8") == [new.id]
    assert await found("metadata.user=7&status=generating") == []
    assert await found("created_after=0001-01-01T00:00:00%2B14:00") == [new.id, old.id]
    assert await found("created_before=9999-12-31T23:59:59-14:00") == [new.id, old.id]


async def test_label_of_any_name_can_be_searched_for(service: Service) -> None:
    made = {name: (await create_task(service.client, metadata={name: f"of {name}"}))["id"] for name in HOSTILE_LABELS}

    answers = {name: await service.client.get("/v1/tasks", params={f"metadata.{name}": f"of {name}"}) for name in made}
    nameless = await service.client.get("/v1/tasks?metadata.=x")

    assert {name: [task["id"] for task in answer.json()["items"]] for name, answer in answers.items()} == {
        name: [task_id] for name, task_id in made.items()
    }
    assert nameless.json()["items"] == []


async def test_all_labels_asked_for_must_match(service: Service) -> None:
    labels = {f"key{number}": f"{number}" for number in range(MAX_LABELS)}
    task_id = (await create_task(service.client, metadata=labels))["id"]
    await create_task(service.client, metadata={**labels, "key7": "x"})
    query = {f"metadata.{name}": value for name, value in labels.items()}

    of_all = (await service.client.get("/v1/tasks", params=query)).json()["items"]
    of_some = (await service.client.get("/v1/tasks", params={"metadata.key1": "1"})).json()["items"]
    swapped = (await service.client.get("/v1/tasks", params={**query, "metadata.key1": "2"})).json()["items"]

    assert [task["id"] for task in of_all] == [task_id]
    assert (len(of_some), swapped) == (2, [])


async def test_search_for_a_common_and_a_rare_label_finds_what_has_both(service: Service) -> None:
    common = [await service.add_task(now=MORNING + timedelta(hours=n), labels={"part": "1"}) for n in range(4)]
    both = [
        await service.add_task(now=MORNING + timedelta(hours=n), labels={"scene": "attic", "part": "1"}) for n in (1, 9)
    ]
    await service.add_task(labels={"scene": "attic"})
    stranger = await add_key(service.database, "stranger")
    await add_task(service.database, stranger, labels={"scene": "attic", "part": "1"})

    first = await service.client.get("/v1/tasks?metadata.part=1&metadata.scene=attic&limit=1")
    second = await service.client.get(first.links["next"]["url"])

    assert [page.json()["items"][0]["id"] for page in (first, second)] == [both[1].id, both[0].id]
    assert second.links == {}
    assert len((await service.client.get("/v1/tasks?metadata.part=1")).json()["items"]) == len(common + both)


async def test_labels_go_with_their_task(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded, labels={"scene": "attic"})
    assert (await service.client.delete(f"/v1/tasks/{task.id}")).status_code == 204

    async with service.database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(TaskLabel)) == 0


@pytest.mark.parametrize("count", [17, 1000])
async def test_more_labels_than_a_task_can_have_are_refused(service: Service, count: int) -> None:
    query = "&".join(f"metadata.k{number}=v" for number in range(count))

    answer = await service.client.get(f"/v1/tasks?{query}")

    assert (answer.status_code, _pointers(answer)) == (422, ["#/query/metadata"])


async def test_label_that_is_asked_for_twice_is_refused(service: Service) -> None:
    answer = await service.client.get("/v1/tasks?metadata.a%2Fb=1&metadata.c=1&metadata.a%2Fb=2")

    assert (answer.status_code, _pointers(answer)) == (422, ["#/query/metadata.a~1b"])


@pytest.mark.parametrize("label", ["metadata.k=%00", "metadata.%00=v", "metadata.k=%ED%A0%80", "metadata.k=%FF"])
async def test_label_that_no_task_can_have_finds_nothing_or_is_refused(service: Service, label: str) -> None:
    answer = await service.client.get(f"/v1/tasks?{label}")

    assert answer.status_code in (200, 422)


async def test_query_that_cannot_be_accepted_is_refused(service: Service) -> None:
    answers = {query: await service.client.get(f"/v1/tasks?{query}") for query in BAD_QUERIES}

    assert {query: answer.status_code for query, answer in answers.items()} == dict.fromkeys(BAD_QUERIES, 422)


async def test_query_is_refused_where_it_is_wrong_and_once(service: Service) -> None:
    query = {"status": "done", "created_after": "yesterday", "limit": "0", "cursor": "x" * 501}

    answer = await service.client.get("/v1/tasks", params=query)

    assert _pointers(answer) == [f"#/query/{name}" for name in query]


async def test_canceled_before_the_post_costs_nothing(service: Service) -> None:
    task = await service.add_task()

    answer = await service.client.post(f"/v1/tasks/{task.id}/cancel")

    canceled = answer.json()
    assert answer.status_code == 200
    assert (canceled["status"], canceled["charge"], canceled["charge_may_apply"]) == ("canceled", "none", False)
    assert canceled["completed_at"] is not None
    assert (await reread(service.database, task.id)).due_at is None


async def test_canceled_after_the_post_may_cost_all_the_same(service: Service) -> None:
    task = await service.add_task(TaskStatus.generating)

    canceled = (await service.client.post(f"/v1/tasks/{task.id}/cancel")).json()

    assert (canceled["status"], canceled["charge"], canceled["charge_may_apply"]) == ("canceled", "charged", True)


async def test_ended_task_cannot_be_canceled(service: Service) -> None:
    task = await service.add_task(TaskStatus.failed)

    answer = await service.client.post(f"/v1/tasks/{task.id}/cancel")

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/task-already-final")
    assert (await reread(service.database, task.id)).version == task.version


async def test_deleted_task_leaves_nothing_behind(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=task.id, index=0, created_at=MORNING))
        outcome = CallbackOutcome.applied
        session.add(Callback(task_id=task.id, received_at=MORNING, headers={}, body=b"{}", outcome=outcome))

    answer = await service.client.delete(f"/v1/tasks/{task.id}")
    again = await service.client.delete(f"/v1/tasks/{task.id}")
    late = await service.client.post(service.callback_path(task.id), content=b'{"code":200}')

    assert (answer.status_code, answer.content) == (204, b"")
    assert (again.status_code, late.status_code) == (404, 404)
    assert [await _count(service, kind) for kind in (Clip, Callback, Event)] == [0, 0, 0]


async def test_task_that_has_not_ended_cannot_be_deleted(service: Service) -> None:
    task = await service.add_task(TaskStatus.generating)

    answer = await service.client.delete(f"/v1/tasks/{task.id}")

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/task-not-final")


async def test_page_of_tasks_ends_where_its_lyrics_exceed_a_number_of_words(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.tasks.clips.MAX_PAGE_WORDS", 5)
    word = {"word": "rain", "start": 0.0, "end": 0.5}
    tasks = [await service.add_task(TaskStatus.succeeded, now=MORNING + timedelta(hours=hour)) for hour in range(5)]
    async with service.database.writes.begin() as session:
        for task, words in zip(tasks, (1, 9, 3, 3, 2), strict=True):
            known = {"index": 0, "created_at": MORNING, "attempts": 0}
            session.add(Clip(task_id=task.id, lyrics=[word] * words, **known))

    pages, url = [], "/v1/tasks"
    while url:
        answer = (await service.client.get(url)).raise_for_status()
        pages.append([task["id"] for task in answer.json()["items"]])
        url = answer.links.get("next", {}).get("url", "")

    first, long, third, fourth, last = [task.id for task in tasks]
    assert pages == [[last, fourth], [third], [long], [first]]


async def test_events_are_listed_in_order_and_in_pages(service: Service) -> None:
    task = await service.add_task()
    await service.client.post(f"/v1/tasks/{task.id}/cancel")

    first = (await service.client.get(f"/v1/tasks/{task.id}/events?limit=1")).json()
    cursor = {"cursor": first["next_cursor"]}
    second = (await service.client.get(f"/v1/tasks/{task.id}/events", params=cursor)).json()

    created, canceled = first["items"] + second["items"]
    assert (created["type"], created["version"], created["task_id"]) == ("task.created", 1, task.id)
    assert (canceled["type"], canceled["version"]) == ("task.canceled", 2)
    assert canceled["data"] == {"status": "canceled", "charge": "none", "resolved_by": None}
    assert second["next_cursor"] is None


async def _another_owner(service: Service) -> Owner:
    return await add_owner(service.database, await add_key(service.database, "another"))


def _pointers(answer: httpx.Response) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


async def _count(service: Service, kind: type[Base]) -> int:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(kind)) or 0


async def _until_a_lock_is_waited_for(service: Service) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    async def is_waiting() -> bool:
        async with service.database.reads() as session:
            return bool(await session.scalar(waiting))

    await eventually(is_waiting)


async def test_orders_that_arrive_together_share_commits(service: Service) -> None:
    body = {"prompt": "rain"}
    with recorded(service.database) as statements:
        answers = await asyncio.gather(*(service.client.post("/v1/tasks", json=body) for _ in range(30)))

    placed = [answer.raise_for_status().json() for answer in answers]
    assert sorted(task["queue_position"] for task in placed) == list(range(1, 31))
    assert len({task["id"] for task in placed}) == 30
    assert {tuple(await event_types(service.database, task["id"])) for task in placed} == {("task.created",)}
    assert statements.count(COMMIT) <= 15


@pytest.mark.parametrize("filters", [{}, {"status": "generating"}, {"model": "V5"}])
async def test_an_admin_lists_the_tasks_of_all_keys_in_order(service: Service, filters: dict[str, str]) -> None:
    keys = [await add_key(service.database, f"caller {number}") for number in range(3)]
    tasks = [
        await add_task(
            service.database, keys[number % 3], TaskStatus.generating, MORNING + timedelta(hours=number // 2)
        )
        for number in range(7)
    ]
    for key in keys:
        await add_task(service.database, key, TaskStatus.failed, MORNING - timedelta(hours=1), model="V3")
    shown: list[str] = []
    cursor: dict[str, str] = {}
    async with await client_with_key(service, "admin", is_admin=True) as admin:
        for _ in range(4):
            page = (await admin.get("/v1/tasks", params={**filters, **cursor, "limit": "2"})).raise_for_status().json()
            shown += [item["id"] for item in page["items"]]
            cursor = {"cursor": page["next_cursor"]}

    expected = [task.id for task in sorted(tasks, key=lambda task: (task.created_at, task.id), reverse=True)]
    assert shown[:7] == expected
    assert len(shown) == (7 if filters else 8)
