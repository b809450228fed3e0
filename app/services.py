"""The composition root: every long-lived object of a process, built once and handed to routes, workers and commands."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from app.config import Settings
from app.database.engine import Database
from app.database.wakeups import Wakeups
from app.dropin.callbacks import publish_to_callback_url
from app.egress import guarded_client, upstream_client
from app.keyring import Keyring, load_or_create_keyring
from app.observability.metrics import Metrics
from app.signed_urls import SignedUrls
from app.storage.store import Storage
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.payloads import publish_to_webhook_url
from app.tasks.service import TaskService
from app.tasks.waiting import RetryAfterEstimate, Waiters
from app.upstream.credits import CreditsCache
from app.upstream.pacing import Pacer
from app.upstream.suno.client import Upstream
from app.webhooks.lifecycle import WebhookLifecycle
from app.webhooks.service import WebhookService


@dataclass(frozen=True, slots=True)
class Services:
    """What one process works with."""

    settings: Settings
    database: Database
    keyring: Keyring
    signed_urls: SignedUrls
    wakeups: Wakeups
    metrics: Metrics
    lifecycle: TaskLifecycle
    tasks: TaskService
    waiters: Waiters
    webhooks: WebhookService
    webhook_lifecycle: WebhookLifecycle
    pacer: Pacer
    upstream_http: httpx.AsyncClient
    upstream: Upstream
    credits: CreditsCache
    storage: Storage
    egress_http: httpx.AsyncClient

    async def close(self) -> None:
        """Return every connection."""
        await self.upstream_http.aclose()
        await self.egress_http.aclose()
        await self.database.close()


def build_services(settings: Settings) -> Services:
    """Build every service; nothing is connected yet. Raises KeyringUnusable."""
    keyring = load_or_create_keyring(settings)
    signed_urls = SignedUrls(keyring, settings.link_base, settings.link_ttl)
    database = Database(settings.database_url)
    wakeups = Wakeups(database)
    lifecycle = TaskLifecycle(settings, signed_urls, publishers=(publish_to_webhook_url, publish_to_callback_url))
    webhook_lifecycle = WebhookLifecycle(settings)
    pacer = Pacer(settings.upstream_rate, hold=settings.submit_lease)
    key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else ""
    upstream_http = upstream_client(settings.upstream_url, key, settings.upstream_call_timeout)
    upstream = Upstream(upstream_http, settings.upstream_call_timeout)
    return Services(
        settings=settings,
        database=database,
        keyring=keyring,
        signed_urls=signed_urls,
        wakeups=wakeups,
        metrics=Metrics(),
        lifecycle=lifecycle,
        tasks=TaskService(settings, database, lifecycle, signed_urls, RetryAfterEstimate()),
        waiters=Waiters(database, wakeups, signed_urls),
        webhooks=WebhookService(database, webhook_lifecycle, keyring),
        webhook_lifecycle=webhook_lifecycle,
        pacer=pacer,
        upstream_http=upstream_http,
        upstream=upstream,
        credits=CreditsCache(database, pacer, upstream),
        storage=Storage(settings.storage_url),
        egress_http=guarded_client(settings.egress_allow, settings.webhook_timeout),
    )
