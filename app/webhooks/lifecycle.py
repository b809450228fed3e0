"""The state of webhook endpoints and deliveries."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from app.config import Settings
from app.database.base import new_id
from app.database.claims import ClaimLost
from app.database.engine import Session, on_commit
from app.database.group_commit import RowLocked
from app.database.wakeups import DELIVERIES, notify_on_commit
from app.egress import Networks, UrlRefused, check_url
from app.enums import DeliveryStatus, DisabledBy, Sweep, WebhookType
from app.errors import InvalidRequest, TooManyEndpoints
from app.keyring import Keyring
from app.models import ApiKey, Delivery, WebhookEndpoint
from app.webhooks import due, rates, repository
from app.webhooks.fields import revealed
from app.webhooks.headers import store_headers
from app.webhooks.outbox import OutboundEvent, enqueue_on_commit, enqueue_to_endpoint
from app.webhooks.retry import GONE, AttemptResult, disabled_by, next_delay, pause_after
from app.webhooks.schemas import (
    EndpointCreate,
    EndpointData,
    EndpointUpdate,
    EndpointWebhook,
    EndpointWebhookType,
    Recovery,
    read_endpoint,
)
from app.webhooks.sweeps import THE_BEGINNING, begin_sweep

log = structlog.get_logger()
# By id, locked; None is one that another transaction has locked.
_Endpoints = Mapping[str, WebhookEndpoint | None]
_Claims = Mapping[str, Any]

MAX_ENDPOINTS = 100


@dataclass(frozen=True, slots=True)
class Attempted:
    """A claimed delivery, and the result of the attempt at it."""

    delivery: Delivery
    result: AttemptResult


@dataclass(frozen=True, slots=True)
class Settled:
    """What a delivery is after an attempt, how many were made, and when this one was settled."""

    status: DeliveryStatus
    attempts_made: int
    at: datetime


def check_receiver(url: str, allow: Networks, pointer: str) -> None:
    """Raise InvalidRequest, with this JSON pointer, for a URL that no delivery could be sent to."""
    try:
        check_url(url, allow)
    except UrlRefused as refused:
        raise InvalidRequest(errors=[{"pointer": pointer, "detail": str(refused)}]) from None


class WebhookLifecycle:
    """The only code that changes the state of endpoints and deliveries. Methods take a session and never commit."""

    def __init__(self, settings: Settings, keyring: Keyring, rng: random.Random) -> None:
        self._keyring = keyring
        self._schedule = settings.webhook_schedule
        self._allow = settings.egress_allow
        self._rng = rng

    async def create_endpoint(
        self, session: Session, api_key_id: str, body: EndpointCreate, now: datetime
    ) -> WebhookEndpoint:
        """Insert an endpoint. Raises InvalidRequest, TooManyEndpoints."""
        check_receiver(body.url, self._allow, "#/url")
        # Each event of the key is one delivery to each of them, in the commit of the event.
        if await repository.count_endpoints(session, api_key_id) >= MAX_ENDPOINTS:
            raise TooManyEndpoints
        endpoint = WebhookEndpoint(
            id=new_id(),
            api_key_id=api_key_id,
            secret_generation=0,
            created_at=now,
            **body.model_dump(exclude={"headers", "disabled"}),
        )
        store_headers(self._keyring, endpoint, revealed(body.headers))
        if body.disabled:
            endpoint.disabled_at, endpoint.disabled_by = now, DisabledBy.owner
        session.add(endpoint)
        return endpoint

    async def update_endpoint(
        self, session: Session, endpoint: WebhookEndpoint, body: EndpointUpdate, now: datetime
    ) -> None:
        """Change the given fields of a locked endpoint. Raises InvalidRequest."""
        given = body.model_dump(exclude_unset=True, exclude={"headers"})
        disabled = given.pop("disabled", None)
        if "url" in given:
            # Deliveries follow: a claim takes the URL from here.
            check_receiver(given["url"], self._allow, "#/url")
        if given.get("rate", endpoint.rate) != endpoint.rate:
            # The next claim counts anew.
            endpoint.full_until = None
            notify_on_commit(session, DELIVERIES)
        for name, value in given.items():
            setattr(endpoint, name, value)
        if "headers" in body.model_fields_set:
            store_headers(self._keyring, endpoint, revealed(body.headers))
        if disabled is False:
            endpoint.disabled_at, endpoint.disabled_by = None, None
            endpoint.failing_since, endpoint.paused_until = None, None
            endpoint.sweep = None if endpoint.sweep is Sweep.give_up else endpoint.sweep
        elif disabled and endpoint.disabled_at is None:
            await self._disable_endpoint(session, endpoint, DisabledBy.owner, now)

    def rotate_secret(self, owner: WebhookEndpoint | ApiKey, now: datetime) -> None:
        """Replace a secret by the next generation; the previous one also signs for 24 hours."""
        owner.secret_generation += 1
        owner.secret_rotated_at = now

    def send_test(self, session: Session, endpoint: WebhookEndpoint, now: datetime) -> Delivery:
        """Insert a `webhook.test` delivery for an endpoint."""
        return enqueue_to_endpoint(session, self._event_about(endpoint, WebhookType.webhook_test, now), endpoint)

    async def recover(self, session: Session, endpoint: WebhookEndpoint, body: Recovery, now: datetime) -> int:
        """Restart the schedule of every undelivered delivery of a time range; return how many, up to MAX_COUNT."""
        until = body.until or now
        count = await repository.count_undelivered(session, endpoint.id, body.since, until)
        await begin_sweep(session, endpoint, Sweep.recover, now, body.since, until)
        return count

    async def delete_endpoint(self, session: Session, endpoint: WebhookEndpoint, now: datetime) -> None:
        """Delete a locked endpoint with its deliveries; what is not erased at once is gone for callers already."""
        endpoint.deleted_at = now
        await begin_sweep(session, endpoint, Sweep.erase, now, THE_BEGINNING, now)

    async def resend(self, session: Session, delivery: Delivery, now: datetime) -> None:
        """Restart the schedule of one delivery, whatever its status: the same id, the same bytes."""
        notify_on_commit(session, DELIVERIES)
        await repository.make_due(session, now, Delivery.id == delivery.id)
        await session.refresh(delivery)

    async def settle(
        self, session: Session, attempts: Sequence[Attempted], now: datetime
    ) -> Sequence[Settled | Exception]:
        """Store the results of attempts, each of another delivery; nothing where RowLocked or ClaimLost is returned."""
        # Lock order: endpoints, then deliveries. Two transactions with different orders would deadlock.
        named = {each.delivery.endpoint_id for each in attempts if each.delivery.endpoint_id}
        endpoints = await due.lock_free_endpoints(session, named)
        free = [each for each in attempts if each.delivery.endpoint_id is None or _endpoint_of(each, endpoints)]
        claims = await due.lock_free_claims(session, {each.delivery.id for each in free})
        unsettled = [_unsettled(each, endpoints, claims) for each in attempts]
        settling = [each for each, reason in zip(attempts, unsettled, strict=True) if reason is None]
        delays = [await self._next_delay(session, each, endpoints, claims, now) for each in settling]
        # After all of them: an endpoint that one of them has disabled gets none of the others again.
        changes = [_change(each, endpoints, claims, delay, now) for each, delay in zip(settling, delays, strict=True)]
        await due.store_results(session, [_attempt(each) for each in settling], changes)
        for endpoint in filter(None, endpoints.values()):
            mine = [each for each in settling if each.delivery.endpoint_id == endpoint.id]
            await rates.count_ended(session, endpoint, [(each.delivery, each.result.ended_at) for each in mine], now)
        settled = (Settled(change["status"], change["attempts_made"], now) for change in changes)
        return [reason or next(settled) for reason in unsettled]

    async def _next_delay(
        self, session: Session, attempted: Attempted, endpoints: _Endpoints, claims: _Claims, now: datetime
    ) -> timedelta | None:
        """When the next attempt would be due; the endpoint learns the result."""
        result, endpoint = attempted.result, _endpoint_of(attempted, endpoints)
        delay = next_delay(self._schedule, claims[attempted.delivery.id].attempts, result.retry_after, self._rng)
        if endpoint is not None:
            await self._update_endpoint_health(session, endpoint, result, now)
            pause = pause_after(result, delay)
            endpoint.paused_until = now + pause if pause else endpoint.paused_until
        return delay

    async def _update_endpoint_health(
        self, session: Session, endpoint: WebhookEndpoint, result: AttemptResult, now: datetime
    ) -> None:
        """Track since when an endpoint fails, and disable it when it has failed for too long or answered 410."""
        if result.is_success:
            endpoint.failing_since = None
        elif endpoint.disabled_at is None:
            endpoint.failing_since = endpoint.failing_since or result.attempted_at
            by = disabled_by(result, endpoint.failing_since, now)
            if by is not None:
                await self._disable_endpoint(session, endpoint, by, now)

    async def _disable_endpoint(
        self, session: Session, endpoint: WebhookEndpoint, by: DisabledBy, now: datetime
    ) -> None:
        endpoint.disabled_at, endpoint.disabled_by = now, by
        await begin_sweep(session, endpoint, Sweep.give_up, now, THE_BEGINNING, now)
        if by is not DisabledBy.owner:
            told = partial(log.warning, "endpoint_disabled", endpoint_id=endpoint.id, disabled_by=by.value)
            on_commit(session, told)
            enqueue_on_commit(session, self._event_about(endpoint, WebhookType.endpoint_disabled, now))

    def _event_about(self, endpoint: WebhookEndpoint, kind: EndpointWebhookType, now: datetime) -> OutboundEvent:
        body = EndpointWebhook(type=kind, timestamp=now, data=EndpointData(endpoint=read_endpoint(endpoint)))
        due_at = now + self._schedule[0]
        return OutboundEvent(new_id(), kind, endpoint.api_key_id, None, body.model_dump_json().encode(), now, due_at)


def _endpoint_of(attempted: Attempted, endpoints: _Endpoints) -> WebhookEndpoint | None:
    return endpoints.get(attempted.delivery.endpoint_id or "")


def _unsettled(attempted: Attempted, endpoints: _Endpoints, claims: _Claims) -> Exception | None:
    delivery = attempted.delivery
    if delivery.endpoint_id is not None and _endpoint_of(attempted, endpoints) is None:
        return RowLocked() if delivery.endpoint_id in endpoints else ClaimLost()
    claim = claims.get(delivery.id)
    if claim is None:
        return RowLocked() if delivery.id in claims else ClaimLost()
    return None if claim.fence == delivery.fence else ClaimLost()


def _attempt(attempted: Attempted) -> Mapping[str, Any]:
    result = attempted.result
    return {
        "id": new_id(),
        "delivery_id": attempted.delivery.id,
        "attempted_at": result.attempted_at,
        "duration_ms": round(result.duration.total_seconds() * 1000),
        "status_code": result.status_code,
        "error": result.error,
        "response": result.response,
    }


def _change(
    attempted: Attempted, endpoints: _Endpoints, claims: _Claims, delay: timedelta | None, now: datetime
) -> Mapping[str, Any]:
    """What becomes of a delivery whose next attempt would come after this delay, or None to give up."""
    delivery, result = attempted.delivery, attempted.result
    endpoint = _endpoint_of(attempted, endpoints)
    is_disabled = result.status_code == GONE or (endpoint is not None and endpoint.disabled_at is not None)
    status = DeliveryStatus.pending
    if result.is_success:
        status = DeliveryStatus.delivered
    elif delay is None or is_disabled:
        status = DeliveryStatus.given_up
    return {
        "settled_id": delivery.id,
        "status": status,
        "attempts_made": claims[delivery.id].attempts_made + 1,
        "delivered_at": now if result.is_success else None,
        "due_at": now + delay if delay is not None and status is DeliveryStatus.pending else None,
    }
