"""Sends webhooks: claims due deliveries, POSTs each once, and stores the result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from app.database.claims import ClaimLost
from app.database.engine import Session
from app.database.group_commit import GroupCommit
from app.database.wakeups import DELIVERIES
from app.egress import CappedResponse, EgressRefused, post_request, send_capped
from app.enums import DeliveryStatus
from app.models import Delivery, WebhookEndpoint
from app.observability.redaction import redact
from app.observability.tracing import TraceContext, current_context
from app.services import Services
from app.web.negotiation import retry_after
from app.webhooks import due, rates, repository
from app.webhooks.headers import HeadersLost, headers_of, secrets_in
from app.webhooks.lifecycle import Attempted, Settled
from app.webhooks.retry import MAX_CONCURRENT, AttemptResult, Lane, share_places
from app.webhooks.signing import secret_of, sign
from app.workers.attempts import INTERRUPTED, Attempt, attempt
from app.workers.runner import Claimed, Loop

CONCURRENCY = 100
# The attempts under way at which a key, a host and a lane that were full get more: a claim for each single place would
# cost more than it brings.
CLAIM_AGAIN_AT = 25, 10, 4
# Bytes that are read of a response, and characters that are stored of it or of an error.
MAX_RESPONSE = 1024


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """
    A claimed delivery with the secrets that sign it, and the headers of its endpoint; or why it is not sent.

    The last two are of its task, if it has one.
    """

    delivery: Delivery
    secrets: tuple[bytes, ...] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    obstacle: str | None
    claimed_at: datetime
    upstream_task_id: str | None
    trace_context: TraceContext | None

    @property
    def lane(self) -> Lane:
        """Where it stood."""
        return Lane(self.delivery.api_key_id, self.delivery.host, self.delivery.lane)


@dataclass(slots=True)
class _Found:
    """Lanes for a claim, which of them have a rate, keys and hosts without a free place, and endpoints that wait."""

    lanes: list[Lane] = field(default_factory=list)
    rated: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)

    def add(self, lane: Lane, *, is_rated: bool) -> None:
        self.lanes.append(lane)
        if is_rated:
            self.rated.add(lane.name)


def deliver_loop(services: Services) -> Loop[ClaimedDelivery]:
    """Return the loop that attempts due deliveries."""
    worker = _DeliveryWorker(services)
    return Loop("deliver", services.wakeups.event(DELIVERIES), CONCURRENCY, worker.claim, worker.work, due.IS_DUE)


class _DeliveryWorker:
    def __init__(self, services: Services) -> None:
        self._services = services
        # The attempts under way, by key, host and lane; and those of the groups that may have more due deliveries.
        self._in_flight: Counter[str] = Counter()
        self._full: set[str] = set()
        observe = services.metrics.batches["deliveries"].observe
        self._results = GroupCommit(self._store, CONCURRENCY, is_idempotent=True, observe=observe)

    async def claim(self, limit: int) -> Claimed[ClaimedDelivery]:
        """Claim due deliveries, a share of each key, host and lane: a receiver's backlog delays no other."""
        services = self._services
        async with services.database.transaction() as (session, now):
            lined_up = await due.line_up(session, now)
            found = await self._lanes(session, now, limit)
            windows = await rates.lock_windows(session, found.rated, now) if found.rated else {}
            shares = share_places(found.lanes, self._counts(found, windows), limit)
            claimed = await due.claim_lanes(session, shares, now, services.settings.webhook_lease) if shares else []
            await rates.count_claimed(session, windows, [delivery for delivery, *_ in claimed], now)
            items = await self._signed(session, claimed, now)
            waiting = {*found.rated, *found.blocked}
            idle = await rates.room_in(session, waiting, now) if waiting else None
        promised = Counter(self._in_flight)
        for lane, share in shares.items():
            promised.update(dict.fromkeys(lane.groups, share))
        for item in items:
            self._in_flight.update(item.lane.groups)
        # Where a rate is used up, an attempt that ends may be the first of its window to leave it.
        self._full = found.full | waiting | {group for lane in found.lanes for group in self._full_groups(lane)}
        # A lane with fewer deliveries than its share has taken places that others of its key or host could have.
        is_short = any(self._full_groups(lane, promised) - {lane.name} - self._full for lane in shares)
        if lined_up == repository.MAX_BATCH or (items and is_short):
            idle = timedelta()
        elif {*found.rated} - {*windows}:
            idle = rates.LOCKED_WAIT
        return Claimed(items, idle)

    async def work(self, item: ClaimedDelivery) -> None:
        """Make one attempt and store its result."""
        try:
            with attempt("deliver", item.trace_context, _fields(item), "delivery_attempted") as made:
                await self._settle(item, await self._attempt(item), made)
        finally:
            self._in_flight -= Counter(item.lane.groups)
            limits = zip(item.lane.groups, CLAIM_AGAIN_AT, strict=True)
            if any(group in self._full and self._in_flight[group] <= most for group, most in limits):
                self._services.wakeups.notify(DELIVERIES)

    async def _lanes(self, session: Session, now: datetime, limit: int) -> _Found:
        found = _Found()
        if (ready := await due.ready_lanes(session, now)) is not None:
            for lane, is_blocked, is_rated in ready:
                if is_blocked:
                    found.blocked.add(lane.name)
                elif not self._full_host(lane.api_key_id, lane.host, found):
                    found.add(lane, is_rated=is_rated)
            self._services.rng.shuffle(found.lanes)
            return found
        found.blocked = await repository.blocked_endpoints(session, now)
        rated = await repository.rated_endpoints(session)
        keys = await self._ready(session, Delivery.api_key_id)
        for key in sorted(keys, key=lambda key: self._in_flight[key]):
            if len(found.lanes) >= limit:
                break
            enough = len(found.lanes) + MAX_CONCURRENT[0]
            for host in await self._ready(session, Delivery.host, Delivery.api_key_id == key):
                if self._full_host(key, host, found):
                    continue
                there = Delivery.api_key_id == key, Delivery.host == host
                for name in await self._ready(session, Delivery.lane, *there):
                    if name not in found.blocked:
                        found.add(Lane(key, host, name), is_rated=name in rated)
                if len(found.lanes) >= enough:
                    break
        return found

    def _full_host(self, api_key_id: str, host: str, found: _Found) -> bool:
        """Whether a key, or this host of it, has no free place, which `found` keeps."""
        groups = self._full_groups(Lane(api_key_id, host, ""))
        found.full |= groups
        return bool(groups)

    def _counts(self, found: _Found, windows: Mapping[str, rates.Window]) -> Mapping[str, int]:
        """The attempts under way by group; in the lane of an endpoint with a rate at least as many as it keeps back."""
        most = MAX_CONCURRENT[-1]
        rooms = {name: windows[name].room if name in windows else 0 for name in found.rated}
        return {**self._in_flight, **{name: max(self._in_flight[name], most - room) for name, room in rooms.items()}}

    async def _ready(
        self, session: Session, column: InstrumentedAttribute[str], *where: ColumnElement[bool]
    ) -> Sequence[str]:
        values = list(await due.ready_values(session, column, self._services.rng, *where))
        self._services.rng.shuffle(values)
        return values

    def _full_groups(self, lane: Lane, counts: Mapping[str, int] | None = None) -> set[str]:
        counts = self._in_flight if counts is None else counts
        limits = zip(lane.groups, MAX_CONCURRENT, strict=True)
        return {group for group, most in limits if counts.get(group, 0) >= most}

    async def _signed(
        self, session: Session, claimed: Sequence[tuple[Delivery, Any, Any]], now: datetime
    ) -> list[ClaimedDelivery]:
        owners = await repository.owners(session, [delivery for delivery, *_ in claimed])
        items = []
        for delivery, upstream_task_id, trace_context in claimed:
            owner = owners[delivery.endpoint_id or delivery.api_key_id]
            headers: Mapping[str, str] = {}
            obstacle = None
            if isinstance(owner, WebhookEndpoint):
                # It may have moved since.
                delivery.url = owner.url
                obstacle = "the endpoint is disabled" if owner.disabled_at is not None else None
                try:
                    headers = headers_of(self._services.keyring, owner)
                except HeadersLost as lost:
                    obstacle = obstacle or str(lost)
            secrets = secret_of(owner).valid_at(now, self._services.keyring)
            items.append(ClaimedDelivery(delivery, secrets, headers, obstacle, now, upstream_task_id, trace_context))
        return items

    async def _attempt(self, item: ClaimedDelivery) -> AttemptResult:
        """POST the delivery within the timeout. Raises nothing for what the network does; no transaction is open."""
        if item.obstacle is not None:
            return AttemptResult(item.claimed_at, timedelta(), error=item.obstacle)
        started, hidden = time.monotonic(), secrets_in(item.headers)
        try:
            answer = await self._post(item)
        # Not only httpx.HTTPError: no request can be made of some URLs. Whatever it is, there is no response, and the
        # attempt counts.
        except Exception as error:
            return AttemptResult(item.claimed_at, _since(started), error=redact(_reason(error), *hidden))
        return AttemptResult(
            item.claimed_at,
            _since(started),
            status_code=answer.status,
            response=_text(redact(answer.body.decode(errors="replace"), *hidden)),
            retry_after=retry_after(answer.headers, item.claimed_at),
        )

    async def _post(self, item: ClaimedDelivery) -> CappedResponse:
        delivery = item.delivery
        headers = {
            **item.headers,
            "Content-Type": "application/json",
            **sign(item.secrets, delivery.event_id, item.claimed_at, delivery.body),
            # Of the attempt, where it is traced, else as the caller sent it with the order.
            **(current_context() or item.trace_context or {}),
        }
        request = post_request(delivery.url, headers, delivery.body)
        client, within = self._services.egress_http, self._services.settings.webhook_timeout
        return await send_capped(client, request, limit=MAX_RESPONSE, within=within)

    async def _settle(self, item: ClaimedDelivery, result: AttemptResult, made: Attempt) -> None:
        made.line |= {"status_code": result.status_code, "error": result.error}
        settled: Settled | None = None
        with suppress(ClaimLost):
            patience = self._services.settings.webhook_lease
            settled = await self._results.add_patiently(Attempted(item.delivery, result), patience)
        self._count(item.delivery, settled)
        is_delivered = settled is not None and settled.status is DeliveryStatus.delivered
        made.is_alarming = not is_delivered
        made.failure = None if is_delivered else str(result.status_code or "no_response")
        made.line |= {
            "attempt": settled.attempts_made if settled else None,
            "status": settled.status.value if settled else "claim_lost",
            "duration_ms": round(result.duration.total_seconds() * 1000),
        }

    def _count(self, delivery: Delivery, settled: Settled | None) -> None:
        metrics = self._services.metrics
        if settled is None:
            metrics.leases_lost["deliver"].inc()
            return
        metrics.deliveries[settled.status].inc()
        if settled.status is DeliveryStatus.delivered:
            metrics.stages["delivery"].observe((settled.at - delivery.created_at).total_seconds())

    async def _store(self, take: Callable[[], Sequence[Attempted]]) -> Sequence[Settled | Exception]:
        """Store the results that have come, in one commit."""
        database = self._services.database
        async with database.writes.begin() as session:
            now = await database.begin_briefly(session)
            return await self._services.webhook_lifecycle.settle(session, take(), now)


def _fields(item: ClaimedDelivery) -> Mapping[str, Any]:
    delivery = item.delivery
    return {
        "delivery_id": delivery.id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type.value,
        "task_id": delivery.task_id,
        "upstream_task_id": item.upstream_task_id,
        "endpoint_id": delivery.endpoint_id,
        "status": INTERRUPTED,
    }


def _since(started: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - started)


def _reason(error: Exception) -> str:
    """Why there is no response. Messages of the libraries may quote what the receiver sent."""
    if isinstance(error, EgressRefused):
        return f"refused: {error}"
    return _text(f"{type(error).__name__}: {error}".removesuffix(": "))


def _text(text: str) -> str:
    # PostgreSQL stores no NUL.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_RESPONSE]
