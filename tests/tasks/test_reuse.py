"""Prefer: reuse: the caller's own equal sound is answered instead of ordered again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select, update

from app.database.base import new_id
from app.database.engine import Database
from app.enums import TaskStatus
from app.models import Clip, RateLimitHit, Task
from app.tasks.orders.reuse import find_reusable
from app.web.negotiation import MAX_REUSE_SECONDS, preferred_reuse
from tests.support.filling import settle_statistics
from tests.support.rows import add_key, add_task
from tests.support.service import Service, client_with_key, serve
from tests.support.statements import recorded

ORDER: dict[str, Any] = {"prompt": "soft rain", "sound_tempo": 90}
HOUR = "reuse=3600"


@pytest.mark.parametrize(
    ("preferences", "seconds"),
    [
        (["reuse=60"], 60),
        (['Reuse = "60"; since=now'], 60),
        (["wait=5, reuse=60"], 60),
        (["wait=5", "reuse=60"], 60),
        (["reuse=999999999"], MAX_REUSE_SECONDS),
        (["reuse=0"], None),
        (["reuse"], None),
        (["reuse=-1"], None),
        (["reuse=1.5"], None),
        (["reuse=" + "9" * 5000], None),
        (["reuse=day, reuse=60"], None),
        (["wait=5"], None),
        ([], None),
    ],
)
def test_preferred_reuse_is_the_first_that_can_be_read(preferences: list[str], seconds: int | None) -> None:
    assert preferred_reuse(preferences) == seconds


async def test_equal_sound_is_answered_and_nothing_is_ordered(service: Service) -> None:
    made = await _succeeded(service)

    # What does not change the sound is no part of it.
    answer = await _order(service.client, {**ORDER, "metadata": {"scene": "attic"}, "sound_key": "Any", "model": "V5"})

    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, made, "succeeded")
    assert answer.headers["preference-applied"] == "reuse"
    assert answer.headers["location"] == f"/v1/tasks/{made}"
    assert "idempotency-replayed" not in answer.headers
    assert "retry-after" not in answer.headers
    assert await _count(service) == 1


async def test_latest_of_several_is_answered(service: Service) -> None:
    old, new, _ = [await _succeeded(service, ago=ago) for ago in (30, 10, 20)]

    assert (await _order(service.client)).json()["id"] == new != old


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "hard rain"},
        {"model": "V5_5"},
        {"sound_loop": True},
        {"sound_tempo": 91},
        {"sound_key": "Am"},
        {"grab_lyrics": True},
    ],
)
async def test_other_sound_is_ordered(service: Service, other: dict[str, Any]) -> None:
    made = await _succeeded(service)

    answer = await _order(service.client, {**ORDER, **other})

    assert (answer.status_code, answer.json()["id"] == made) == (202, False)
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize(
    "columns", [{"status": TaskStatus.failed}, {"status": TaskStatus.canceled}, {"status": TaskStatus.generating}]
)
async def test_sound_that_did_not_succeed_is_ordered_again(service: Service, columns: dict[str, Any]) -> None:
    made = await _succeeded(service)
    await _change(service, made, **columns)

    assert (await _order(service.client)).status_code == 202


async def test_sound_that_is_too_old_or_lost_is_ordered_again(service: Service) -> None:
    await _succeeded(service, ago=3660)
    lost = await _succeeded(service, ago=60)
    async with service.database.writes.begin() as session:
        await session.execute(update(Clip).where(Clip.task_id == lost).values(given_up_at=datetime.now(UTC)))

    answer = await _order(service.client)

    assert (answer.status_code, await _count(service)) == (202, 3)


async def test_another_keys_sound_is_not_reused_by_anybody(service: Service) -> None:
    await _succeeded(service)
    async with (
        await client_with_key(service, "stranger") as stranger,
        await client_with_key(service, "admin", is_admin=True) as admin,
    ):
        statuses = [(await _order(each)).status_code for each in (stranger, admin)]

    assert statuses == [202, 202]


@pytest.mark.parametrize("prefer", ["", "reuse=0", "reuse=soon", "respond-async"])
async def test_without_the_preference_it_is_ordered_again(service: Service, prefer: str) -> None:
    await _succeeded(service)

    assert (await _order(service.client, prefer=prefer)).status_code == 202


async def test_wait_and_reuse_are_both_applied(service: Service) -> None:
    await _succeeded(service)

    answer = await _order(service.client, prefer="wait=5, reuse=3600")

    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "reuse, wait=5")


async def test_reuse_does_not_count_against_the_rate(database_url: str) -> None:
    async with serve(database_url, key_rate="1/600") as service:
        made = await _succeeded(service)
        answers = [await _order(service.client) for _ in range(3)]
        async with service.database.reads() as session:
            hits = await session.scalar(select(func.count()).select_from(RateLimitHit))

    assert {(answer.status_code, answer.json()["id"]) for answer in answers} == {(200, made)}
    # The one is of the order that made the sound.
    assert (hits, answers[-1].headers["ratelimit"].startswith('"default";r=0')) == (1, True)


async def test_key_of_a_reusing_order_stays_with_the_reused_task(service: Service) -> None:
    made = await _succeeded(service)

    first = await _order(service.client, key="k")
    newer = await _succeeded(service)
    again = await _order(service.client, key="k")
    plain = await _order(service.client, prefer="", key="k")

    assert newer != made
    assert [each.json()["id"] for each in (first, again, plain)] == 3 * [made]
    assert [each.headers.get("idempotency-replayed") for each in (first, again, plain)] == [None, "true", "true"]
    assert [each.headers.get("preference-applied") for each in (first, again, plain)] == ["reuse", "reuse", None]


async def test_replayed_key_wins_over_a_reuse(service: Service) -> None:
    ordered = (await _order(service.client, prefer="", key="k")).json()["id"]
    await _succeeded(service)

    again = await _order(service.client, key="k")

    assert (again.status_code, again.json()["id"], again.headers["idempotency-replayed"]) == (202, ordered, "true")
    assert "preference-applied" not in again.headers


async def test_equal_sound_is_found_by_its_index(database: Database) -> None:
    key, now = await add_key(database), datetime.now(UTC)
    task = await add_task(database, key, TaskStatus.succeeded, now)
    same = {name: getattr(task, name) for name in ("api_key_id", "status", "prompt", "model", "sound_key", "labels")}
    same |= {"sound_loop": False, "grab_lyrics": False, "created_at": now, "updated_at": now, "completed_at": now}
    async with database.writes.begin() as session:
        await session.execute(insert(Task), [{**same, "id": new_id(), "sound_digest": new_id()} for _ in range(3_000)])
    await settle_statistics(database)

    async with database.reads() as session:
        with recorded(database) as statements:
            found = await find_reusable(session, key, task.sound_digest, now)
        explain = "EXPLAIN QUERY PLAN" if database.url.startswith("sqlite") else "EXPLAIN"
        sql, parameters = next(each for each in statements if each.sql.startswith("SELECT tasks"))
        rows = await (await session.connection()).exec_driver_sql(f"{explain} {sql}", parameters)
        plan = "\n".join(str(row[-1]) for row in rows)

    assert found is not None
    assert (found.id, "ix_tasks_reusable" in plan) == (task.id, True), plan


async def _succeeded(service: Service, ago: float = 1) -> str:
    """Order the sound and have it succeed; return its id."""
    made = await service.create_task(**ORDER)
    now = datetime.now(UTC) - timedelta(seconds=ago)
    await _change(service, made, status=TaskStatus.succeeded, completed_at=now, due_at=None)
    async with service.database.writes.begin() as session:
        session.add(Clip(task_id=made, index=0, source_audio_url="http://h/a", created_at=now))
    return made


async def _change(service: Service, task_id: str, **columns: Any) -> None:
    async with service.database.writes.begin() as session:
        await session.execute(update(Task).where(Task.id == task_id).values(columns))


async def _order(
    client: httpx.AsyncClient, body: dict[str, Any] | None = None, prefer: str = HOUR, key: str | None = None
) -> httpx.Response:
    headers = {name: value for name, value in {"Prefer": prefer, "Idempotency-Key": key}.items() if value}
    return await client.post("/v1/tasks", json=body or ORDER, headers=headers)


async def _count(service: Service) -> int | None:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(Task))
