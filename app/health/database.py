"""Whether the database can be used: it answers and can be written, and has the schema of this release."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

from app.database.connections import read_access
from app.database.engine import Database
from app.database.sqlite import file_of
from app.health.results import Check

# What to do about the most frequent reasons for which a server refuses a connection, by their words.
_ADVICE = (
    ("unsupported startup parameter", "add pgbouncer=true to SOUNDPOST_DATABASE_URL, as PgBouncer is behind it"),
    ("password|role .* does not exist", "check the user and the password in SOUNDPOST_DATABASE_URL"),
    ("database .* does not exist", "create it, or name another in SOUNDPOST_DATABASE_URL"),
    (
        "too many|remaining connection slots",
        "lower SOUNDPOST_DATABASE_POOL_SIZE, or raise max_connections on the server of SOUNDPOST_DATABASE_URL",
    ),
)
# Bytes: SQLite keeps its log of writes beside its file, and vacuums there.
ROOM = 100_000_000


async def check_database(database: Database, room: int = ROOM) -> Check:
    """Whether the database answers and takes writes, and SQLite has `room` to grow. Raises what the driver raises."""
    async with database.reads() as session:
        if session.get_bind().dialect.name == "sqlite":
            file = await file_of(session)
            return await asyncio.to_thread(_check_file, file, room)
        access = await read_access(session)
    if access.is_standby:
        advice = "the primary, or all servers with target_session_attrs=read-write"
        return Check(status="down", detail=f"it is a standby: let SOUNDPOST_DATABASE_URL name {advice}")
    if access.is_read_only:
        advice = "set default_transaction_read_only to off for its role and database, or name another server"
        return Check(status="down", detail=f"it is read-only, so nothing can be stored: {advice}")
    if access.may_insert is False:
        advice = "GRANT it SELECT, INSERT, UPDATE, DELETE ON ALL TABLES, or name the role that ran `soundpost migrate`"
        return Check(status="down", detail=f"its role may not write the tables, so nothing can be stored: {advice}")
    return Check(status="ok", detail="it answers")


def advice_on(error: Exception) -> str:
    """What an operator should do about a database that does not answer, or refuses."""
    found = (advice for words, advice in _ADVICE if re.search(words, str(error)))
    return next(found, "check SOUNDPOST_DATABASE_URL")


async def check_migrations(database: Database) -> Check:
    """Whether the schema is that of this release."""
    if await database.is_migrated():
        return Check(status="ok", detail="the schema is this release's")
    return Check(status="down", detail="the schema is not this release's: run `soundpost migrate`")


def _check_file(file: Path, room: int) -> Check:
    """Whether an SQLite file is where it was opened and can grow. Paths are left out: anybody may read /readyz."""
    if not file.exists():
        advice = "put the file of SOUNDPOST_DATABASE_URL back, or a copy of it, and restart every process"
        return Check(
            status="down", detail=f"its file was removed while it is open, and what is written is lost: {advice}"
        )
    if not all(os.access(path, os.W_OK, effective_ids=True) for path in (file, file.parent)):
        advice = "let the user of this process write the file of SOUNDPOST_DATABASE_URL and its folder"
        return Check(status="down", detail=f"its file or folder is read-only, so nothing can be stored: {advice}")
    free = shutil.disk_usage(file.parent).free
    if free < room:
        amounts = f"only {free // 1_000_000} MB are free on its disk, less than {room // 1_000_000} MB"
        return Check(status="degraded", detail=f"it answers, but {amounts}: make room there")
    return Check(status="ok", detail="it answers")
