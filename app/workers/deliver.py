"""Telling callers: each delivery one attempt at a time, each receiver a few at a time, until it is taken in."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx
import structlog

from app.database.claims import Claim, claim_due
from app.database.engine import Session
from app.database.wakeups import DELIVERIES
from app.egress import CappedResponse, EgressRefused, send_capped
from app.models import Delivery, WebhookEndpoint
from app.services import Services
from app.web.negotiation import retry_after
from app.webhooks import repository
from app.webhooks.retry import AttemptResult, share_room
from app.webhooks.signing import secret_of, sign
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

AT_ONCE = 100
AT_ONCE_FOR_ONE = 5
KEPT_OF_ANSWER = 1024


@dataclass(frozen=True, slots=True)
class Sending:
    """A delivery of ours to make; without secrets where its endpoint is disabled."""

    delivery: Delivery
    secrets: tuple[bytes, ...]
    claimed_at: datetime


def deliver_loop(services: Services) -> Loop[Sending]:
    """The loop that tells."""
    courier = _Courier(services)
    return Loop("deliver", services.wakeups.event(DELIVERIES), AT_ONCE, courier.claim, courier.work)


class _Courier:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._busy: Counter[str] = Counter()
        self._crowded: set[str] = set()
        self._rng = random.Random()  # noqa: S311 - takes turns, guards nothing

    async def claim(self, limit: int) -> Claimed[Sending]:
        """Take what is due, from every lane its share: a backlog waits for its own receiver and for no other."""
        services = self._services
        async with services.database.transaction() as (session, now):
            lanes = list(await repository.due_lanes(session, now))
            # Where there are more lanes than room, each has its turn.
            self._rng.shuffle(lanes)
            shares = share_room(lanes, self._busy, limit, AT_ONCE_FOR_ONE)
            claimed: list[Delivery] = []
            for lane, share in shares.items():
                claim = Claim(now, services.settings.webhook_lease, share)
                claimed += await claim_due(session, Delivery, claim, Delivery.lane == lane)
            sendings = await self._signed(session, claimed, now)
        self._busy.update(delivery.lane for delivery in claimed)
        self._crowded = {lane for lane in lanes if self._busy[lane] >= shares.get(lane, 0)}
        return Claimed(sendings)

    async def work(self, sending: Sending) -> None:
        """Make one attempt and write down what came of it."""
        lane = sending.delivery.lane
        try:
            outcome = await self._attempt(sending)
            await self._settle(sending, outcome)
        finally:
            self._busy -= Counter([lane])
            if lane in self._crowded:
                self._services.wakeups.notify(DELIVERIES)

    async def _signed(self, session: Session, deliveries: Sequence[Delivery], now: datetime) -> list[Sending]:
        owners = await repository.owners(session, deliveries)
        sendings = []
        for delivery in deliveries:
            owner = owners[delivery.endpoint_id or delivery.api_key_id]
            is_disabled = isinstance(owner, WebhookEndpoint) and owner.disabled_at is not None
            secrets = () if is_disabled else secret_of(owner).valid_at(now, self._services.keyring)
            sendings.append(Sending(delivery, secrets, now))
        return sendings

    async def _attempt(self, sending: Sending) -> AttemptResult:
        """Send it, whatever happens, within the time; no transaction is open here."""
        if not sending.secrets:
            return AttemptResult(sending.claimed_at, timedelta(), error="the endpoint is disabled")
        began = time.monotonic()
        try:
            answer = await self._post(sending)
        except httpx.HTTPError as error:
            return AttemptResult(sending.claimed_at, _since(began), error=_reason(error))
        return AttemptResult(
            sending.claimed_at,
            _since(began),
            status_code=answer.status,
            response=_text(answer.body.decode(errors="replace")),
            retry_after=retry_after(answer.headers, sending.claimed_at),
        )

    async def _post(self, sending: Sending) -> CappedResponse:
        delivery = sending.delivery
        headers = {
            "Content-Type": "application/json",
            **sign(sending.secrets, delivery.event_id, sending.claimed_at, delivery.body),
        }
        client = self._services.egress_http
        request = client.build_request("POST", delivery.url, content=delivery.body, headers=headers)
        return await send_capped(client, request, limit=KEPT_OF_ANSWER, within=self._services.settings.webhook_timeout)

    async def _settle(self, sending: Sending, outcome: AttemptResult) -> None:
        services = self._services
        async with services.database.transaction() as (session, now):
            settled = await services.webhook_lifecycle.settle(session, sending.delivery, outcome, now)
        log.info(
            "delivery",
            delivery_id=sending.delivery.id,
            event_id=sending.delivery.event_id,
            event_type=sending.delivery.event_type.value,
            task_id=sending.delivery.task_id,
            endpoint_id=sending.delivery.endpoint_id,
            attempt=settled.attempts_made if settled else None,
            result=settled.status.value if settled else "overtaken",
            status_code=outcome.status_code,
            error=outcome.error,
            duration_ms=round(outcome.duration.total_seconds() * 1000),
        )


def _since(began: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - began)


def _reason(error: httpx.HTTPError) -> str:
    """Why there is no answer; the libraries' own words may quote what the receiver sent."""
    if isinstance(error, EgressRefused):
        return f"refused: {error}"
    return _text(f"{type(error).__name__}: {error}".removesuffix(": "))


def _text(text: str) -> str:
    # PostgreSQL stores no NUL.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:KEPT_OF_ANSWER]
