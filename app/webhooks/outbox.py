"""What is to be told is a row of the same commit as the fact it tells of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import httpx
from sqlalchemy import event, orm

from app.database.engine import Session
from app.database.wakeups import DELIVERIES, ring_on_commit
from app.enums import WebhookType
from app.models import Delivery, WebhookEndpoint
from app.webhooks import repository


@dataclass(frozen=True, slots=True)
class News:
    """One event in the bytes in which it is told, and when it is told first."""

    event_id: str
    type: WebhookType
    api_key_id: str
    task_id: str | None
    body: bytes
    created_at: datetime
    due_at: datetime


def tell(session: Session, news: News) -> None:
    """Tell each of the caller's endpoints that wants to hear of this, if and when this transaction is committed."""
    _defer(session, news, None)


def tell_url(session: Session, news: News, url: str) -> None:
    """Tell, likewise, an address that was given for one task; the caller's default secret signs it."""
    _defer(session, news, url)


def tell_endpoint(session: Session, news: News, endpoint: WebhookEndpoint) -> Delivery:
    """Tell one endpoint, whatever it chose to hear of."""
    return _add_delivery(session.sync_session, news, endpoint.url, endpoint.id)


def _defer(session: Session, news: News, url: str | None) -> None:
    # The commit itself looks the endpoints up, once for all that it has to tell: no writer of events has a step to
    # forget, and the writers need not be asynchronous for it.
    if not event.contains(session.sync_session, "before_commit", _enqueue):
        event.listen(session.sync_session, "before_commit", _enqueue)
    session.info.setdefault("news", []).append((news, url))


def _enqueue(session: orm.Session) -> None:
    told: list[tuple[News, str | None]] = session.info.pop("news", [])
    if not told:
        return
    # The tasks that this tells of may be as new as the news.
    session.flush()
    endpoints = repository.enabled_endpoints(session, {news.api_key_id for news, url in told if url is None})
    for news, url in told:
        if url is not None:
            _add_delivery(session, news, url, None)
            continue
        for endpoint in endpoints:
            if endpoint.api_key_id == news.api_key_id and _wants(endpoint, news.type):
                _add_delivery(session, news, endpoint.url, endpoint.id)


def _wants(endpoint: WebhookEndpoint, kind: WebhookType) -> bool:
    return endpoint.event_types is None or kind in endpoint.event_types


def _add_delivery(session: orm.Session, news: News, url: str, endpoint_id: str | None) -> Delivery:
    delivery = Delivery(
        api_key_id=news.api_key_id,
        endpoint_id=endpoint_id,
        task_id=news.task_id,
        event_id=news.event_id,
        event_type=news.type,
        url=url,
        # Not `host`, which reads punycode back into Unicode and fails on some of what DNS knows.
        lane=endpoint_id or f"{news.api_key_id} {httpx.URL(url).raw_host.decode()}",
        body=news.body,
        created_at=news.created_at,
        due_at=news.due_at,
    )
    session.add(delivery)
    ring_on_commit(session, DELIVERIES)
    return delivery
