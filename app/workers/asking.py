"""Asking the upstream in our turn, and heeding when it wants us slower or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from app.database.engine import Session
from app.services import Services
from app.upstream.hold import Hold, hold_submits
from app.upstream.pacing import poll_share
from app.upstream.types import HoldReason, LyricsAnswer, PollAnswer, PollVerdict, ReadVerdict

Answer = TypeVar("Answer", PollAnswer, LyricsAnswer)

TIMEOUT = timedelta(seconds=10)


async def ask(services: Services, question: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """Ask something once a place in the upstream's pace is free; None where none came free in time."""
    slot = await services.pacer.wait_for_slot(services.database, TIMEOUT, poll_share)
    if slot is None:
        return None
    answer = await question()
    async with services.database.writes.begin() as session:
        now = await services.database.now(session)
        await services.pacer.release(session, *slot, now)
        await apply_backpressure(services, session, answer, now)
    return answer


async def apply_backpressure(
    services: Services, session: Session, answer: PollAnswer | LyricsAnswer, now: datetime
) -> None:
    """Do for all replicas what an answer asks for: wait, or hold submits."""
    if answer.kind in (PollVerdict.throttled, ReadVerdict.throttled):
        await services.pacer.pause(session, now, answer.retry_after)
    elif answer.kind in (PollVerdict.held, ReadVerdict.held):
        hold = Hold(answer.hold_reason or HoldReason.blocked, now, answer.message)
        await hold_submits(session, hold, services.settings.hold_recheck)
