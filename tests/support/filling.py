"""Many rows at once: a database that has grown, filled by the database itself in one statement for each table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import NullPool, create_engine, make_url

from app.database.base import Base, new_id
from app.database.engine import Database
from app.models import WebhookEndpoint
from tests.support.settings import UNREACHABLE

# All tables grow with the number of tasks, but those that have a row for each key, endpoint, slot, job or release.
GROWING = frozenset(Base.metadata.tables) - {
    *("api_keys", "former_keys", "webhook_endpoints"),
    *("pace_slots", "periodic_jobs", "compatible_revisions", "queue_tags", "budgets", "endpoint_sends"),
}
SPREAD = timedelta(days=30)
# Of each kind of rows, those of the last minutes.
UNCOUNTED = 300


@dataclass(frozen=True)
class Owner:
    """A key with a webhook endpoint, to whom rows belong."""

    key_id: str
    endpoint_id: str


async def add_owner(database: Database, key_id: str) -> Owner:
    """Add an endpoint that is not reachable to a key."""
    endpoint = WebhookEndpoint(
        id=new_id(), api_key_id=key_id, url=f"{UNREACHABLE}/hook", secret_generation=0, created_at=datetime.now(UTC)
    )
    async with database.writes.begin() as session:
        session.add(endpoint)
    return Owner(key_id, endpoint.id)


async def fill_finished(database: Database, owners: Sequence[Owner], count: int, histories: int | None = None) -> None:
    """
    Add tasks that ended in the last 30 days.

    As many as `histories` of them, or all, have an event, a callback and a clip that is archived.
    """
    histories = count if histories is None else histories
    status = _choice("succeeded", "succeeded", "succeeded", "failed")
    await _fill(database, "tasks", count, {**_task(owners, "1", status), **_counted("charged", 1, count)})
    await _fill_labels(database, owners, "1", count)
    task = {"task_id": "{id:1}", "created_at": "{time}"}
    event = {"id": "{id:1}", **task, "version": "1", "type": "'task.created'", "data": "'{{}}'"}
    await _fill(database, "events", histories, event)
    kept = {"task_id": "{id:1}", "received_at": "{time}", "headers": "'{{}}'", "body": "{bytes}"}
    await _fill(database, "callbacks", histories, {"id": "{id:1}", **kept, "outcome": "'applied'"})
    await _fill(database, "stored_objects", histories, {"key": "{id:1}", "attempts": "0"})
    clip = {"id": "{id:1}", **task, "index": "0", "storage_key": "{id:1}", "archived_at": "{time}", "attempts": "1"}
    clip["lane"] = "'cdn.example:443'"
    await _fill(database, "clips", histories, clip)


async def fill_queued(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add tasks that wait for their submit."""
    unknown = dict.fromkeys(("upstream_task_id", "resolved_by", "submitted_at", "completed_at"), "NULL")
    queued = {**_task(owners, "2", "'queued'"), **unknown, "due_at": "{time}"}
    queued |= _counted("none", 0, count)
    await _fill(database, "tasks", count, queued)
    await _fill_labels(database, owners, "2", count)


async def fill_held(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add tasks that wait for room in the budgets of their keys."""
    unknown = dict.fromkeys(("upstream_task_id", "resolved_by", "submitted_at", "completed_at"), "NULL")
    held = {**_task(owners, "7", "'queued'"), **unknown, **_counted("none", 0, count)}
    await _fill(database, "tasks", count, held)


async def fill_ledgers(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add as many entries of finished tasks, of which each has one."""
    entry = {"id": "{id:1}", "task_id": "{id:1}", "number": "1", "kind": "'reserve'", "created_at": "{time}"}
    of_key = {"api_key_id": _choice(*(owner.key_id for owner in owners))}
    await _fill(database, "ledger_entries", count, {**entry, **of_key, "credits": "-2500", "balance": "-2500"})


async def fill_generating(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add tasks that wait for their callbacks; they are due for a poll in an hour."""
    unknown = dict.fromkeys(("resolved_by", "completed_at"), "NULL")
    generating = {**_task(owners, "3", "'generating'"), **unknown, "version": "1", "due_at": "{soon}"}
    await _fill(database, "tasks", count, {**generating, **_counted("charged", 1, count)})
    event = {"id": "{id:3}", "task_id": "{id:3}", "version": "1", "type": "'task.submitted'", "data": "'{{}}'"}
    await _fill(database, "events", count, {**event, "created_at": "{time}"})


async def fill_deliveries(database: Database, owners: Sequence[Owner], count: int, status: str = "pending") -> None:
    """Add deliveries of as many finished tasks, with one attempt each; pending ones are due in an hour."""
    due_at = "{soon}" if status == "pending" else "NULL"
    kind = {"pending": "4", "delivered": "5", "given_up": "6"}[status]
    delivery = {
        "id": f"{{id:{kind}}}",
        "api_key_id": _choice(*(owner.key_id for owner in owners)),
        "endpoint_id": _choice(*(owner.endpoint_id for owner in owners)),
        "task_id": "{id:1}",
        "event_id": f"{{id:{kind}}}",
        "event_type": "'task.succeeded'",
        "url": f"'{UNREACHABLE}/hook'",
        "lane": _choice(*(owner.endpoint_id for owner in owners)),
        "host": "'127.0.0.1:9'",
        "is_ready": "FALSE",
        "body": "{bytes}",
        "status": f"'{status}'",
        "attempts_made": "1",
        "created_at": "{time}",
        "due_at": due_at,
        "attempts": "1",
    }
    await _fill(database, "deliveries", count, delivery)
    attempt = {"id": f"{{id:{kind}}}", "delivery_id": f"{{id:{kind}}}", "attempted_at": "{time}", "duration_ms": "7"}
    await _fill(database, "delivery_attempts", count, attempt)


async def fill_leftovers(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add what orders leave behind: keys, hits of a rate limit, charges of deleted tasks, and what was changed."""
    key = {"api_key_id": _choice(*(owner.key_id for owner in owners))}
    kept = {**key, "key": "{id:7}", "fingerprint": "{id:7}", "task_id": "{id:1}", "created_at": "{time}"}
    await _fill(database, "idempotency_keys", count, kept)
    await _fill(database, "rate_limit_hits", count, {**key, "id": "{id:7}", "made_at": "{time}"})
    spent = {**key, "task_id": "{id:7}", "created_at": "{time}", **_counted("charged", 1, count)}
    await _fill(database, "spent_charges", count, spent)
    changed = {"id": "{id:7}", "created_at": "{time}", "actor": "'operator'", "action": "'key.changed'"}
    await _fill(database, "audit_entries", count, {**changed, "target": "{id:7}", "detail": "'{{}}'"})


async def fill_ledger(database: Database, owners: Sequence[Owner], count: int) -> None:
    """Add entries of the ledger: each reserves for a finished task."""
    entry = {"api_key_id": _choice(*(owner.key_id for owner in owners)), "id": "{id:8}", "task_id": "{id:1}"}
    booked = {"kind": "'reserve'", "number": "n", "credits": "-2500", "balance": "-2500 * n", "created_at": "{time}"}
    await _fill(database, "ledger_entries", count, {**entry, **booked})


async def fill_sums(database: Database) -> None:
    """Add the sums of usage of all tasks and of deleted ones, but for the latest."""
    for period in ("hour", "day"):
        start = f"date_trunc('{period}', created_at, 'UTC')"
        if _is_sqlite(database):
            start = f"strftime('%Y-%m-%d {'%H' if period == 'hour' else '00'}:00:00.000000', created_at)"
        columns = "api_key_id, counted_charge, counted_posts, created_at"
        counted = " UNION ALL ".join(f"SELECT {columns} FROM {table}" for table in ("tasks", "spent_charges"))  # noqa: S608
        rows = f"FROM ({counted}) AS counted WHERE counted_charge IS NOT NULL GROUP BY 1, 3, 4"
        sums = f"SELECT api_key_id, '{period}', {start}, counted_charge, count(*), sum(counted_posts) {rows}"
        insert = f"INSERT INTO usage_sums (api_key_id, period, starts_at, charge, tasks, posts) {sums}"
        await asyncio.to_thread(_execute, database.url, insert)


async def _fill_labels(database: Database, owners: Sequence[Owner], kind: str, count: int) -> None:
    """Add the labels of tasks: one of a thousand scenes, and one of ten parts."""
    label = {"task_id": f"{{id:{kind}}}", "api_key_id": _choice(*(owner.key_id for owner in owners))}
    label["created_at"] = "{time}"
    for name, different in (("scene", 1000), ("part", 10)):
        value = f"'{name[0]}' || (n % {different})"
        await _fill(database, "task_labels", count, {**label, "name": f"'{name}'", "value": value})


async def settle_statistics(database: Database) -> None:
    """Bring the planner's statistics and the visibility map up to date, as autovacuum does with time."""
    if not _is_sqlite(database):
        await asyncio.to_thread(_execute, database.url, "VACUUM ANALYZE")


def _task(owners: Sequence[Owner], kind: str, status: str) -> dict[str, str]:
    return {
        "id": f"{{id:{kind}}}",
        "api_key_id": _choice(*(owner.key_id for owner in owners)),
        "status": status,
        "version": "4",
        "prompt": "'soft rain on a tin roof'",
        "model": _choice("V5", "V4"),
        "sound_loop": "false",
        "sound_key": "'Any'",
        "grab_lyrics": "false",
        "priority": "1",
        "sound_digest": f"{{id:{kind}}}",
        "price": "2500",
        "booked": "'reserve'" if status == "'queued'" else "'settle'",
        "metadata": "{labels}",
        "upstream_task_id": f"{{id:{kind}}}",
        "resolved_by": "'callback'",
        "was_unconfirmed": "false",
        "audio_checks": "0",
        "created_at": "{time}",
        "submitted_at": "{time}",
        "completed_at": "{time}",
        "updated_at": "{time}",
        "attempts": "0",
    }


def _counted(charge: str, posts: int, count: int) -> dict[str, str]:
    """What each row costs, which the sums of usage hold of all but the last UNCOUNTED."""
    cost = {"charge": f"'{charge}'", "posts": str(posts)}
    held = {f"counted_{name}": f"CASE WHEN n <= {count - UNCOUNTED} THEN {value} END" for name, value in cost.items()}
    return {**cost, **held}


def _choice(*values: str) -> str:
    """SQL for one value after the other, in a round."""
    cases = " ".join(f"WHEN {number} THEN '{value}'" for number, value in enumerate(values))
    return f"CASE n % {len(values)} {cases} END"


async def _fill(database: Database, table: str, count: int, columns: dict[str, str]) -> None:
    """Insert rows 1 to `count`; a column's SQL may use n, and the words of `_words` in braces."""
    if not count:
        return
    series = f"generate_series(1, {count}) AS series (n)"
    if _is_sqlite(database):
        numbers = f"SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count}"  # noqa: S608
        series = f"(WITH RECURSIVE series (n) AS ({numbers}) SELECT n FROM series)"  # noqa: S608
    names = ", ".join(f'"{name}"' for name in columns)
    words = _words(_is_sqlite(database), count)
    values = ", ".join(sql.format(**words) for sql in columns.values())
    insert = f"INSERT INTO {table} ({names}) SELECT {values} FROM {series}"  # noqa: S608
    await asyncio.to_thread(_execute, database.url, insert)


def _execute(url: str, sql: str) -> None:
    """Run one statement on a connection of its own, which has no limit of time."""
    drivers = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}
    parsed = make_url(url)
    engine = create_engine(
        parsed.set(drivername=drivers[parsed.drivername]), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(sql)


class _Id:
    """`{id:7}` in a column's SQL: the id of row n, in 32 digits of which the first is the kind."""

    def __init__(self, digits: str) -> None:
        self._digits = digits

    def __format__(self, kind: str) -> str:
        return f"'{kind}' || {self._digits}"


def _words(is_sqlite: bool, count: int) -> dict[str, object]:
    """The SQL of each dialect for ids, for moments of the last 30 days and in an hour, for labels and for bytes."""
    now = datetime.now(UTC)
    first, soon, step = now - SPREAD, now + timedelta(hours=1), SPREAD.total_seconds() / count
    if is_sqlite:
        return {
            "id": _Id("printf('%031x', n)"),
            "time": f"strftime('%Y-%m-%d %H:%M:%f000', {first.timestamp()!r} + n * {step!r}, 'unixepoch')",
            "soon": f"'{soon:%Y-%m-%d %H:%M:%S.%f}'",
            "labels": "json_object('scene', 's' || (n % 1000), 'part', 'p' || (n % 10))",
            "bytes": "zeroblob(300)",
        }
    return {
        "id": _Id("lpad(to_hex(n), 31, '0')"),
        "time": f"timestamptz '{first.isoformat()}' + n * interval '{step!r} seconds'",
        "soon": f"timestamptz '{soon.isoformat()}'",
        "labels": "json_build_object('scene', 's' || (n % 1000), 'part', 'p' || (n % 10))",
        "bytes": "decode(repeat('00', 300), 'hex')",
    }


def _is_sqlite(database: Database) -> bool:
    return database.url.startswith("sqlite")
