"""The history of submits tells an operator what was stored, and only that."""

from __future__ import annotations

from app.database.engine import Database
from app.upstream.history import SubmitRecorder, read_history
from app.upstream.types import Outcome, Result
from tests.support.clock import MORNING

ACCEPTED = Result(Outcome.ok, "up-1")


async def test_result_whose_transaction_failed_is_noted_by_the_next_one(database: Database) -> None:
    recorder = SubmitRecorder()

    async with database.writes() as session:
        await recorder.record(session, ACCEPTED, MORNING, "key")
        await session.rollback()
    async with database.writes.begin() as session:
        await recorder.record(session, ACCEPTED, MORNING, "key")

    async with database.reads() as session:
        assert (await read_history(session)).succeeded_at == MORNING
