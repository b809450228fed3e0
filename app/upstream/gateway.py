"""The one way to call the upstream: reserve a slot, call, release the slot, and apply what the result asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import structlog

from app.database.engine import Database, Session, on_commit
from app.database.failures import TRANSIENT
from app.observability.metrics import Metrics
from app.upstream.hold import EXPLANATIONS, Hold, hold_submits
from app.upstream.pacing import Pacer, Share, Slot, poll_share
from app.upstream.types import HoldReason, LyricWord, Outcome, Report, Result, SoundRequest, Timing, Upstream

log = structlog.get_logger()
Value = TypeVar("Value")
Call = Callable[[Upstream], Awaitable[Result[Value]]]

SLOT_TIMEOUT = timedelta(seconds=10)
# Calls are cancelled when the grace is over. A database that is away must not delay the exit further.
RELEASE_TIMEOUT = timedelta(seconds=0.5)
# Codes of the upstream, and HTTP statuses: of refusals that our request deserves, and of an upstream that takes none.
REFUSALS = range(400, 500)
MAINTENANCE, UNAVAILABLE = 455, 503


class MeasuredUpstream:
    """An `Upstream` whose calls are counted by kind and outcome, and whose submits are timed."""

    def __init__(self, upstream: Upstream, metrics: Metrics) -> None:
        self._upstream, self._metrics = upstream, metrics
        # Callbacks are no calls.
        self.read_callback, self.is_signed = upstream.read_callback, upstream.is_signed
        self.note_unknown = upstream.note_unknown

    @property
    def needs_signature(self) -> bool:
        """Whether callbacks must be signed."""
        return self._upstream.needs_signature

    @property
    def secrets(self) -> Sequence[str]:
        """What must be redacted."""
        return self._upstream.secrets

    async def submit(self, request: SoundRequest) -> Result[str]:
        """Request a sound."""
        began = time.monotonic()
        result = await self._counted("submit", self._upstream.submit(request))
        self._metrics.stages["submit"].observe(time.monotonic() - began)
        return result

    async def record_info(self, upstream_task_id: str) -> Result[Report]:
        """Poll a task."""
        return await self._counted("poll", self._upstream.record_info(upstream_task_id))

    async def credits(self) -> Result[Decimal]:
        """The credits that are left."""
        return await self._counted("credits", self._upstream.credits())

    async def lyrics(self, upstream_task_id: str, upstream_clip_id: str) -> Result[tuple[LyricWord, ...]]:
        """The words of a finished clip."""
        return await self._counted("lyrics", self._upstream.lyrics(upstream_task_id, upstream_clip_id))

    async def _counted(self, kind: str, call: Awaitable[Result[Value]]) -> Result[Value]:
        result = await call
        self._metrics.calls[kind, result.outcome.value].inc()
        return result


class UpstreamGateway:
    """
    Calls the upstream for every use: submits, polls, lyrics, fresh links, credits and the recheck of a hold.

    Submits and polls reserve their slots in the transaction that claims their rows, make
    their call with `call_in`, and hand its result to `finish`, or release several slots and
    then `heed` their results, in the transaction that settles the rows. All other calls
    are one `call`.
    """

    def __init__(
        self, upstream: Upstream, pacer: Pacer, database: Database, hold_recheck: timedelta, key: str | None
    ) -> None:
        # `key` is the fingerprint of the key that this process uses, which may change.
        self.pacer, self.key = pacer, key
        self._upstream, self._database, self._hold_recheck = upstream, database, hold_recheck

    async def call(
        self, call: Call[Value], share: Share = poll_share, *, may_hold: bool = True
    ) -> Result[Value] | None:
        """
        Make one call as soon as a slot of this share is free; None if none is within SLOT_TIMEOUT.

        `may_hold` is False for an operator's check, which should not stop the submits of others.
        """
        slot = await self.pacer.wait_for_slot(self._database, SLOT_TIMEOUT, share)
        if slot is None:
            return None
        result = await self.call_in(slot, call)
        async with self._database.transaction() as (session, now):
            if result.outcome is Outcome.held and not may_hold:
                await self.pacer.release(session, [slot], now)
            else:
                await self.finish(session, slot, result, now)
        return result

    async def call_in(self, slot: Slot, call: Call[Value]) -> Result[Value]:
        """
        Make one call in a reserved slot, which `finish` then releases.

        The slot of a cancelled call is released here. Left alone, it would be lost to
        the other replicas for the pacer's `hold` as well.
        """
        key, began = self.key, time.monotonic()
        try:
            result = await call(self._upstream)
        except BaseException:
            await self._release(slot)
            raise
        if result.hold_reason is HoldReason.bad_key and key != self.key:
            # The key that was refused has been replaced meanwhile, and the new one is not to be held for it.
            return Result(Outcome.not_sent, message="The key was replaced while the upstream refused it.")
        result = replace(result, timing=Timing(began, timedelta(seconds=time.monotonic() - began)))
        if _is_upstream_at_fault(result):
            # Without the task, so that an hour of them is one line a minute.
            outcome, code = result.outcome.value, result.code
            log.warning("upstream_call_failed", outcome=outcome, upstream_code=code, upstream_message=result.message)
        return result

    async def finish(self, session: Session, slot: Slot, result: Result[Any], now: datetime) -> None:
        """Release the slot of a call, and do what its result asks for."""
        await self.pacer.release(session, [slot], now)
        await self.heed(session, result, now)

    async def heed(self, session: Session, result: Result[Any], now: datetime) -> None:
        """Do for all replicas what a result asks for: pause, or hold submits."""
        if result.outcome is Outcome.throttled:
            await self.pacer.pause(session, now, result.retry_after)
        elif result.outcome is Outcome.held:
            hold = Hold(result.hold_reason or HoldReason.blocked, now, result.message, self.key)
            explained = {"reason": hold.reason.value, "key": self.key, "advice": EXPLANATIONS[hold.reason]}
            on_commit(session, partial(log.warning, "submits_held", **explained))
            await hold_submits(session, hold, self._hold_recheck)

    async def _release(self, slot: Slot) -> None:
        with suppress(*TRANSIENT):
            async with (
                asyncio.timeout(RELEASE_TIMEOUT.total_seconds()),
                self._database.transaction() as (session, now),
            ):
                await self.pacer.release(session, [slot], now)


def _is_upstream_at_fault(result: Result[Any]) -> bool:
    """Whether no answer came, or one that says or shows that the upstream does not work."""
    if result.outcome in (Outcome.not_sent, Outcome.ambiguous):
        return True
    if result.outcome is Outcome.failed:
        return result.code not in REFUSALS
    return result.outcome is Outcome.throttled and result.code in (MAINTENANCE, UNAVAILABLE)
