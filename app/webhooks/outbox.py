"""Transactional outbox: deliveries are inserted in the transaction that records the event."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import httpx
from sqlalchemy import event, insert, orm

from app.database.base import ID_LENGTH, Base
from app.database.engine import Session
from app.database.wakeups import DELIVERIES, notify_on_commit
from app.enums import WebhookType
from app.models import Delivery, WebhookEndpoint
from app.webhooks import repository

_INSERT = insert(Base.metadata.tables[Delivery.__tablename__])


@dataclass(frozen=True, slots=True)
class OutboundEvent:
    """One event as the bytes that are sent. `due_at` is the time of the first attempt."""

    event_id: str
    type: WebhookType
    api_key_id: str
    task_id: str | None
    body: bytes
    created_at: datetime
    due_at: datetime


def note_callers(session: Session, listening: Collection[str]) -> None:
    """Note that no other callers than these have an endpoint: for the others, nothing needs to be made."""
    session.info["listening"] = listening


def may_have_endpoints(session: Session, api_key_id: str) -> bool:
    """Whether a caller may have an endpoint; True if nobody has noted it."""
    listening: Collection[str] | None = session.info.get("listening")
    return listening is None or api_key_id in listening


def enqueue_on_commit(session: Session, outbound: OutboundEvent) -> None:
    """When the transaction commits, insert a delivery to each enabled endpoint of the caller that wants this type."""
    _defer(session, outbound, None)


def enqueue_to_url_on_commit(session: Session, outbound: OutboundEvent, url: str) -> None:
    """When the transaction commits, insert a delivery to this URL, signed with the caller's default secret."""
    _defer(session, outbound, url)


def enqueue_to_endpoint(session: Session, outbound: OutboundEvent, endpoint: WebhookEndpoint) -> Delivery:
    """Insert a delivery to one endpoint now, whatever its `event_types`."""
    delivery = Delivery(**_delivery(outbound, endpoint.url, endpoint.id))
    session.add(delivery)
    notify_on_commit(session, DELIVERIES)
    return delivery


def _defer(session: Session, outbound: OutboundEvent, url: str | None) -> None:
    # The hook looks the endpoints up once for all events of the transaction. No writer of events can forget the
    # look-up, and none has to be asynchronous for it.
    if not event.contains(session.sync_session, "before_commit", _enqueue):
        event.listen(session.sync_session, "before_commit", _enqueue)
    session.info.setdefault("outbound_events", []).append((outbound, url))


def _enqueue(session: orm.Session) -> None:
    queued: list[tuple[OutboundEvent, str | None]] = session.info.pop("outbound_events", [])
    if not queued:
        return
    # The deliveries refer to tasks that may be new in this transaction.
    session.flush()
    callers = {outbound.api_key_id for outbound, url in queued if url is None}
    endpoints = repository.enabled_endpoints(session, callers) if callers else ()
    deliveries = []
    for outbound, url in queued:
        if url is not None:
            deliveries.append(_delivery(outbound, url, None))
            continue
        wanting = (each for each in endpoints if each.api_key_id == outbound.api_key_id and _wants(each, outbound.type))
        deliveries += [_delivery(outbound, endpoint.url, endpoint.id) for endpoint in wanting]
    if deliveries:
        session.connection().execute(_INSERT, deliveries)
        notify_on_commit(session, DELIVERIES)


def _wants(endpoint: WebhookEndpoint, kind: WebhookType) -> bool:
    return endpoint.event_types is None or kind in endpoint.event_types


def _delivery(outbound: OutboundEvent, url: str, endpoint_id: str | None) -> dict[str, Any]:
    """The columns of a delivery that is due at the event's time."""
    host, lane = _host_and_lane(url, outbound.api_key_id)
    return {
        "api_key_id": outbound.api_key_id,
        "endpoint_id": endpoint_id,
        "task_id": outbound.task_id,
        "event_id": outbound.event_id,
        "event_type": outbound.type,
        "url": url,
        "host": host,
        "lane": endpoint_id or lane,
        "body": outbound.body,
        "created_at": outbound.created_at,
        "due_at": outbound.due_at,
        "is_ready": outbound.due_at <= outbound.created_at,
    }


@lru_cache(maxsize=1000)
def _host_and_lane(url: str, api_key_id: str) -> tuple[str, str]:
    """Digests: names of any length end up short. Only the query varies between the deliveries to one receiver."""
    receiver = httpx.URL(url.partition("#")[0].partition("?")[0])
    # Not `host`: it decodes punycode, and raises for some names that DNS accepts.
    return _digest(receiver.raw_host.decode()), _digest(f"{api_key_id} {receiver}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
