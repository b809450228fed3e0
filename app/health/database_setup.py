"""Whether the database is set up as this service needs it: for an operator, since it changes seldom."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from app.config import Settings
from app.config.database_url import DatabaseLimits
from app.database.connections import ServerFacts, SessionLimits, read_limits, read_server, wanted_limits
from app.database.engine import Database
from app.database.sqlite import file_of, journal_mode
from app.health.results import Check

# The first PostgreSQL with `WITH … AS MATERIALIZED`, which claims need.
OLDEST_SERVER = 12
# Beside its pool a process has one connection for LISTEN and two for callbacks.
BESIDE_POOL = 3
NEARLY_ALL = 0.9
# File systems of other machines: their locks and shared memory do not do what SQLite's log needs.
NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"),
    }
)
# Seconds: after so much silence the server should look whether a client is still there.
LONGEST_SILENCE = 300


async def check_database_setup(database: Database) -> Check:
    """Whether the server, or SQLite's file, is one that this service can rely on."""
    async with database.reads() as session:
        if session.get_bind().dialect.name == "sqlite":
            file, mode = await file_of(session), await journal_mode(session)
            kind = await asyncio.to_thread(_file_system_of_file, file)
            found, told = list(_find_file_problems(kind, mode)), f"SQLite, {mode} on {kind or 'a file system'}"
        else:
            facts = await read_server(session)
            found, told = list(find_server_problems(facts, database.limits)), _describe(facts)
    return Check(status="degraded" if found else "ok", detail="; ".join(found) or told)


async def check_timeouts(database: Database, settings: Settings) -> Check:
    """Whether the server ends by itself what a client has left behind, as its sessions really have it."""
    if settings.is_sqlite:
        return Check(status="ok", detail="SQLite needs none")
    async with database.reads() as session:
        limits = await read_limits(session)
    found = list(find_missing_limits(limits, wanted_limits(database.limits)))
    told = ", ".join(f"{name} {value / 1000:g} s" for name, value in limits.timeouts.items())
    return Check(status="degraded" if found else "ok", detail="; ".join(found) or told)


def find_server_problems(facts: ServerFacts, limits: DatabaseLimits) -> Iterator[str]:
    """What is wrong with a PostgreSQL server, in sentences that say what to do."""
    if facts.version < OLDEST_SERVER:
        yield f"the server is PostgreSQL {facts.version}: use {OLDEST_SERVER} or later"
    if facts.encoding != "UTF8":
        yield (
            f"the database stores {facts.encoding}, which cannot hold every prompt: create one with ENCODING 'UTF8',"
            " and move the data by pg_dump"
        )
    own = limits.pool_size + limits.max_overflow + BESIDE_POOL
    most = min(facts.connections, facts.own_connections or facts.connections)
    if own > most:
        yield (
            f"a process opens up to {own} connections, and gets {most}: lower SOUNDPOST_DATABASE_POOL_SIZE and"
            " SOUNDPOST_DATABASE_MAX_OVERFLOW, or raise max_connections and the limits of the role and the database"
        )
    if facts.used > NEARLY_ALL * facts.connections:
        yield (
            f"{facts.used} of the server's {facts.connections} connections are in use: raise max_connections, or lower"
            f" SOUNDPOST_DATABASE_POOL_SIZE (a process opens up to {own})"
        )


def find_missing_limits(limits: SessionLimits, wanted: Mapping[str, timedelta]) -> Iterator[str]:
    """What the server's sessions lack, in sentences that say what to do."""
    off = [name for name, value in limits.timeouts.items() if not value]
    if off:
        settings = ", ".join(f"{name} = '{wanted[name].total_seconds():g}s'" for name in off)
        yield (
            f"{', '.join(off)}: off here, so what hangs keeps its locks; behind PgBouncer add pgbouncer=true"
            " to SOUNDPOST_DATABASE_URL, take them out of its `options`, or set them for the role by ALTER ROLE … SET"
            f" {settings}"
        )
    if limits.silence is not None and not 0 < limits.silence <= LONGEST_SILENCE:
        yield (
            f"tcp_keepalives_idle is {limits.silence} s, so the server notices late that a machine is gone: set it to"
            " 10 on the server, or for the role by ALTER ROLE … SET tcp_keepalives_idle = 10"
        )


def file_system_of(device: str, mounts: str) -> str | None:
    """The kind of file system of a device such as 8:1, by the text of /proc/self/mountinfo; None if it is not there."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [device]:
            return after.split()[0]
    return None


def _file_system_of_file(file: Path) -> str | None:
    try:
        device, mounts = file.stat().st_dev, Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    return file_system_of(f"{os.major(device)}:{os.minor(device)}", mounts)


def _find_file_problems(kind: str | None, mode: str) -> Iterator[str]:
    if kind in NETWORK_FILE_SYSTEMS:
        yield (
            f"the file of SOUNDPOST_DATABASE_URL is on a network file system ({kind}), where SQLite loses data: put it"
            " on a disk of this machine, or use PostgreSQL"
        )
    if mode != "wal":
        yield (
            f"the journal mode is {mode} instead of wal, so readers and the writer block each other: put the file on a"
            " local disk, and take `vfs`, `mode` and `immutable` out of SOUNDPOST_DATABASE_URL"
        )


def _describe(facts: ServerFacts) -> str:
    return f"PostgreSQL {facts.version}, {facts.encoding}, {facts.used} of {facts.connections} connections in use"
