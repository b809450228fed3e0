"""Records: rows as plain objects, written by one statement for many."""

from datetime import timedelta

from sqlalchemy import select

from app.database.base import new_id
from app.database.engine import Database
from app.database.records import RecordSession, columns, is_new, new_row, record_sessions
from app.enums import EventType
from app.models import Clip, Event, Task
from tests.support.clock import MORNING
from tests.support.rows import add_key, add_task, event_types, reread
from tests.support.statements import COMMIT, recorded

LATER = MORNING + timedelta(seconds=1)


async def test_only_what_has_changed_is_written_by_one_statement_for_all(database: Database) -> None:
    ids = await _add_tasks(database, 4)

    with recorded(database) as statements:
        async with record_sessions(database.writes).begin() as session:
            first, second, third, same = await _load(session, ids)
            first.version, second.version, third.model = 7, 8, "V6"
            same.version, same.updated_at = same.version + 0, LATER - timedelta(seconds=1)
            await session.write()
            await session.write()

    written = [sql for sql, _ in statements if sql.startswith("UPDATE")]
    assert [sql.partition(" WHERE ")[0].count("=") for sql in written] == [1, 1]
    assert [(await reread(database, task_id)).version for task_id in ids] == [7, 8, 1, 1]
    assert (await reread(database, ids[2])).model == "V6"


async def test_columns_with_another_name_than_their_attribute_are_read_and_written(database: Database) -> None:
    [task_id] = await _add_tasks(database, 1)

    async with record_sessions(database.writes).begin() as session:
        [task] = await _load(session, [task_id])
        was, task.labels = task.labels, {"scene": "8"}
        await session.write()

    assert (was, (await reread(database, task_id)).labels) == ({"scene": "7"}, {"scene": "8"})


async def test_new_rows_are_inserted_whatever_they_are_made_as(database: Database) -> None:
    [task_id] = await _add_tasks(database, 1)
    facts = {"task_id": task_id, "type": EventType.task_progressed, "created_at": MORNING, "data": {}}

    async with record_sessions(database.writes).begin() as session:
        [task] = await _load(session, [task_id])
        clip = new_row(task, Clip, {"task_id": task_id, "index": 0, "created_at": MORNING, "attempts": 0})
        clip.title = "Rain"
        session.add(clip)
        session.add(Event(id=new_id(), version=2, **facts))
        session.insert(Event, {"id": new_id(), "version": 3, **facts})
        assert (is_new(clip), is_new(task)) == (True, False)
        await session.write()

    assert [(clip.title, len(clip.id)) for clip in (await reread(database, task_id)).clips] == [("Rain", 32)]
    assert await event_types(database, task_id) == ["task.created", "task.progressed", "task.progressed"]


async def test_what_is_rolled_back_is_not_written(database: Database) -> None:
    [task_id] = await _add_tasks(database, 1)

    with recorded(database) as statements:
        async with record_sessions(database.writes)() as session:
            [task] = await _load(session, [task_id])
            task.version = 7
            await session.write()

    assert COMMIT not in statements
    assert (await reread(database, task_id)).version == 1


async def test_row_beside_an_instance_of_a_class_is_one_too(database: Database) -> None:
    [task_id] = await _add_tasks(database, 1)

    clip = new_row(await reread(database, task_id), Clip, {"task_id": task_id, "index": 0})

    assert (type(clip), is_new(clip)) == (Clip, False)


async def _add_tasks(database: Database, count: int) -> list[str]:
    owner = await add_key(database)
    return [(await add_task(database, owner, labels={"scene": "7"})).id for _ in range(count)]


async def _load(session: RecordSession, ids: list[str]) -> list[Task]:
    found = await session.execute(select(*columns(Task)).where(Task.id.in_(ids)).order_by(Task.id))
    return session.load(Task, found.all())
