"""
What the service is measured against: FastAPI, with nothing behind it or with one row by SQLAlchemy's ORM.

Written as most would write it, with the settings of the service: asyncpg with its pool's size; SQLite
with WAL, synchronous=FULL and one writing connection, which is faster than several that wait for the file's lock.
Run by uvicorn with uvloop and httptools, without an access log.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import JSON, DateTime, String, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ["BENCH_DATABASE_URL"]
IS_SQLITE = URL.startswith("sqlite")
POOL = {"pool_size": 1, "max_overflow": 0} if IS_SQLITE else {"pool_size": 10, "max_overflow": 5}
engine = create_async_engine(URL, **POOL, pool_timeout=60)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables."""


class Row(Base):
    """One message with its time."""

    __tablename__ = "rows"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    body: Mapped[dict[str, Any]] = mapped_column(JSON)


if IS_SQLITE:

    @event.listens_for(engine.sync_engine, "connect")
    def _durable(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the table."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def open_session() -> AsyncIterator[AsyncSession]:
    """A session for one request."""
    async with sessions() as session:
        yield session


app = FastAPI(lifespan=lifespan)
SessionDep = Annotated[AsyncSession, Depends(open_session)]


@app.post("/plain")
async def receive(body: dict[str, Any]) -> dict[str, str]:
    """Read the body, and keep nothing."""
    return {"status": "received" if body else "empty"}


@app.get("/plain/{row_id}")
async def read_nothing(row_id: str) -> dict[str, str]:
    """A row that is not looked for."""
    return {"id": row_id, "created_at": "2026-01-01T00:00:00Z"}


@app.post("/rows")
async def insert(session: SessionDep, body: dict[str, Any]) -> dict[str, str]:
    """One INSERT and one COMMIT."""
    row = Row(id=uuid.uuid4().hex, created_at=datetime.now(UTC), body=body)
    session.add(row)
    await session.commit()
    return {"id": row.id}


@app.get("/rows/{row_id}")
async def get(session: SessionDep, row_id: str) -> dict[str, Any]:
    """One row by its id."""
    row = await session.get(Row, row_id)
    if row is None:
        raise HTTPException(404)
    return _shown(row)


@app.get("/rows")
async def list_rows(session: SessionDep) -> list[dict[str, Any]]:
    """A page of fifty."""
    return [_shown(row) for row in await session.scalars(select(Row).order_by(Row.id).limit(50))]


def _shown(row: Row) -> dict[str, Any]:
    return {"id": row.id, "created_at": row.created_at, "body": row.body}
