"""
Usage: how many tasks a key has created, by their charge, and how many POSTs were made for them.

Sums by hour and by day hold each task as it was when it was last added up. What has changed since, a charge that was
refunded or a new task, is read from the tasks themselves, and so are the parts of an hour at both ends of a range. So
an answer takes as long as there are days, and few orders of the last minutes; nobody who places or settles a task
writes or waits for a sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, String, Update, delete, func, literal, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite

from app.database.base import to_utc
from app.database.engine import Session
from app.enums import Charge, Period
from app.models import SpentCharge, Task, UsageSum

# A task is added up once it has not changed for so long: by then most have ended.
REST = timedelta(minutes=10)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LENGTHS: Mapping[Period, timedelta] = {Period.hour: HOUR, Period.day: DAY}
# Later moments have no next hour or day.
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)
Span = tuple[datetime | None, datetime | None]


async def sum_usage(
    session: Session, api_key_ids: Collection[str], since: datetime | None, until: datetime | None
) -> tuple[Mapping[Charge, int], int]:
    """
    These keys' tasks by charge, and their POSTs; deleted tasks too, created from `since` on and before `until`.

    Of tasks that are in the sums alone, those count whose hour begins in the range.
    """
    # In one statement, so that what is being added up meanwhile is seen either before or after.
    parts = union_all(*_parts(api_key_ids, *_in_order(since, until))).subquery()
    by_charge = select(parts.c.charge, func.sum(parts.c.tasks), func.sum(parts.c.posts)).group_by(parts.c.charge)
    rows = (await session.execute(by_charge)).all()
    return Counter({charge: int(tasks) for charge, tasks, _ in rows}), sum(int(posts) for *_, posts in rows)


async def sum_by_day(
    session: Session, api_key_ids: Collection[str], since: datetime | None, until: datetime | None
) -> Sequence[tuple[str, date, Charge, int, int]]:
    """The same by key and day in UTC, in this order: key, day, charge, tasks and POSTs. What is nothing is left out."""
    parts = union_all(*_parts(api_key_ids, *_in_order(since, until))).subquery()
    key_id, at, charge, tasks, posts = parts.c
    if session.get_bind().dialect.name == "sqlite":
        day = func.date(at, type_=String)
    else:
        day = func.to_char(func.timezone("UTC", at), "YYYY-MM-DD", type_=String)
    by_day = select(key_id, day.label("day"), charge, func.sum(tasks), func.sum(posts)).group_by(key_id, "day", charge)
    is_any = (func.sum(tasks) != 0) | (func.sum(posts) != 0)
    rows = (await session.execute(by_day.having(is_any).order_by(key_id, "day", charge))).all()
    return [(key, date.fromisoformat(day), charge, int(tasks), int(posts)) for key, day, charge, tasks, posts in rows]


def full_periods(first: datetime | None, last: datetime | None) -> Iterator[tuple[Period, Span]]:
    """The fewest days and hours from one full hour to another; None is without a bound."""
    first_day, last_day = first and _end(first, DAY), last and _start(last, DAY)
    if first_day and last_day and first_day >= last_day:
        yield Period.hour, (first, last)
        return
    if first:
        yield Period.hour, (first, first_day)
    yield Period.day, (first_day, last_day)
    if last:
        yield Period.hour, (last_day, last)


def _in_order(since: datetime | None, until: datetime | None) -> Span:
    """A range whose ends have a next hour and day; where it ends before it begins, one without anything in it."""
    since, until = (moment and min(to_utc(moment), END_OF_TIME) for moment in (since, until))
    return (since, since) if since is not None and until is not None and since > until else (since, until)


def _parts(
    api_key_ids: Collection[str], since: datetime | None, until: datetime | None
) -> Iterator[Select[*tuple[Any, ...]]]:
    """Rows of key, moment, charge, tasks and POSTs that together make a range's usage."""
    first, last = since and _end(since, HOUR), until and _end(until, HOUR)
    for period, span in full_periods(first, last):
        of = UsageSum.api_key_id.label("api_key_id"), UsageSum.starts_at.label("at"), UsageSum.charge.label("charge")
        sums = select(*of, UsageSum.tasks.label("tasks"), UsageSum.posts.label("posts"))
        yield sums.where(
            UsageSum.api_key_id.in_(api_key_ids), UsageSum.period == period, *_is_in(UsageSum.starts_at, span)
        )
    for kind in (Task, SpentCharge):
        of_task, is_theirs = (kind.api_key_id, kind.created_at), kind.api_key_id.in_(api_key_ids)
        more = select(*of_task, kind.charge, literal(1), kind.posts).where(is_theirs)
        less = select(*of_task, kind.charge, literal(-1), -kind.posts).where(is_theirs)
        held = select(*of_task, kind.counted_charge, literal(-1), -kind.counted_posts).where(is_theirs)
        changed = [~kind.is_counted, *_is_in(kind.created_at, (first, last))]
        yield more.where(*changed)
        yield held.where(*changed, kind.counted_charge.isnot(None))
        # The sums begin and end with a full hour: the rest of the first one comes to them, that of the last one goes.
        if since != first:
            yield more.where(*_is_in(kind.created_at, (since, first)))
        if until != last:
            yield less.where(*_is_in(kind.created_at, (until, last)))


async def add_up(
    session: Session, kind: type[Task | SpentCharge], write: Update, limit: int, *where: ColumnElement[bool]
) -> int:
    """
    Bring the sums up to date with up to `limit` rows that have changed; return their number.

    `write` is an update of this kind of rows, by which they are marked. Rows that others have locked come next time.
    """
    key = kind.__mapper__.primary_key[0]
    cost = kind.charge, kind.posts, kind.counted_charge, kind.counted_posts
    changed = select(key, kind.api_key_id, kind.created_at, *cost)
    # In the order of the index, which is read no further than needed.
    oldest = changed.where(~kind.is_counted, *where).order_by(kind.api_key_id, kind.created_at).limit(limit)
    rows = (await session.execute(oldest.with_for_update(skip_locked=True, key_share=True))).all()
    tasks, posts = Counter[tuple[str, Period, datetime, Charge]](), Counter[tuple[str, Period, datetime, Charge]]()
    for _, key_id, created_at, charge, made, counted_charge, counted_posts in rows:
        for period, length in LENGTHS.items():
            starts_at = _start(created_at, length)
            tasks[key_id, period, starts_at, charge] += 1
            posts[key_id, period, starts_at, charge] += made
            if counted_charge is not None:
                tasks[key_id, period, starts_at, counted_charge] -= 1
                posts[key_id, period, starts_at, counted_charge] -= counted_posts
    names = "api_key_id", "period", "starts_at", "charge"
    # In one order, so that two that add up at once wait for each other instead of deadlocking.
    sums = [{**dict(zip(names, of, strict=True)), "tasks": tasks[of], "posts": posts[of]} for of in sorted(tasks)]
    if sums:
        insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(UsageSum)
        added = {"tasks": UsageSum.tasks + insert.excluded.tasks, "posts": UsageSum.posts + insert.excluded.posts}
        await session.execute(insert.on_conflict_do_update(index_elements=names, set_=added), sums)
        held = write.where(key.in_([id_ for id_, *_ in rows]))
        as_it_is = held.values(counted_charge=kind.charge, counted_posts=kind.posts)
        await session.execute(as_it_is.execution_options(synchronize_session=False))
    return len(rows)


async def add_up_spent(session: Session, limit: int) -> int:
    """Bring the sums up to date with up to `limit` deleted tasks; return their number."""
    return await add_up(session, SpentCharge, update(SpentCharge), limit)


async def forget_spent(session: Session, before: datetime, limit: int) -> int:
    """Leave up to `limit` deleted tasks, created before this time, to the sums alone; return their number."""
    is_old = SpentCharge.is_counted & (SpentCharge.created_at < before)
    oldest = select(SpentCharge.task_id).where(is_old).order_by(SpentCharge.created_at).limit(limit)
    left = delete(SpentCharge).where(SpentCharge.task_id.in_(oldest)).returning(SpentCharge.task_id)
    return len((await session.execute(left)).all())


def _is_in(moment: Any, span: Span) -> list[ColumnElement[bool]]:
    start, end = span
    return [*([] if start is None else [moment >= start]), *([] if end is None else [moment < end])]


def _start(moment: datetime, length: timedelta) -> datetime:
    """The beginning of the hour or day of a moment."""
    return moment.replace(minute=0, second=0, microsecond=0, hour=0 if length == DAY else moment.hour)


def _end(moment: datetime, length: timedelta) -> datetime:
    """The moment itself, if an hour or day begins with it, or else the beginning of the next one."""
    start = _start(moment, length)
    return start if start >= moment else start + length
