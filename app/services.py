"""The composition root: every long-lived object of a process, built once and handed to routes, workers and commands."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from app.callbacks.service import CallbackService
from app.clips.service import ClipService
from app.config import Settings
from app.database.engine import Clock, Database, database_clock
from app.database.wakeups import Wakeups
from app.dropin.callbacks import publish_to_callback_url
from app.egress import guarded_client, upstream_client
from app.keyring import Keyring, load_or_create_keyring
from app.observability.metrics import Metrics
from app.signed_urls import SignedUrls
from app.storage.store import Storage
from app.tasks.events import publish_to_webhook_url
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.service import TaskService
from app.tasks.waiting import RetryAfterEstimate, Waiters
from app.upstream.credits import CreditsCache
from app.upstream.gateway import UpstreamGateway
from app.upstream.pacing import Pacer
from app.upstream.suno.client import SunoApi
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
    rng: random.Random
    lifecycle: TaskLifecycle
    tasks: TaskService
    clips: ClipService
    waiters: Waiters
    callbacks: CallbackService
    webhooks: WebhookService
    webhook_lifecycle: WebhookLifecycle
    gateway: UpstreamGateway
    upstream_http: httpx.AsyncClient
    credits: CreditsCache
    storage: Storage
    egress_http: httpx.AsyncClient

    async def close(self) -> None:
        """Return every connection."""
        await self.credits.close()
        await self.upstream_http.aclose()
        await self.egress_http.aclose()
        await self.database.close()


def build_services(settings: Settings, clock: Clock = database_clock) -> Services:
    """Build every service; nothing is connected yet. `clock` returns the database's time. Raises KeyringUnusable."""
    keyring = load_or_create_keyring(settings)
    signed_urls = SignedUrls(keyring, settings.link_base, settings.link_ttl)
    database = Database(settings.database_url, clock, settings.database_limits)
    wakeups = Wakeups(database)
    metrics = Metrics()
    rng = random.Random()  # noqa: S311 - spreads retries, not for security
    lifecycle = TaskLifecycle(settings, signed_urls, (publish_to_webhook_url, publish_to_callback_url), rng)
    webhook_lifecycle = WebhookLifecycle(settings, rng)
    tasks = TaskService(settings, database, lifecycle, signed_urls, RetryAfterEstimate())
    waiters = Waiters(database, wakeups, signed_urls)
    pacer = Pacer(settings.upstream_rate, hold=settings.submit_lease)
    key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else ""
    upstream_http = upstream_client(settings.upstream_url, key, settings.upstream_call_timeout)
    hmac_key = settings.callback_hmac_key.get_secret_value() if settings.callback_hmac_key else None
    upstream = SunoApi(upstream_http, key, settings.upstream_call_timeout, hmac_key, metrics)
    gateway = UpstreamGateway(upstream, pacer, database, settings.hold_recheck, settings.upstream_fingerprint)
    return Services(
        settings=settings,
        database=database,
        keyring=keyring,
        signed_urls=signed_urls,
        wakeups=wakeups,
        metrics=metrics,
        rng=rng,
        lifecycle=lifecycle,
        tasks=tasks,
        clips=ClipService(tasks, signed_urls, waiters),
        waiters=waiters,
        callbacks=CallbackService(settings, database, keyring, lifecycle, upstream, metrics),
        webhooks=WebhookService(database, webhook_lifecycle, keyring),
        webhook_lifecycle=webhook_lifecycle,
        gateway=gateway,
        upstream_http=upstream_http,
        credits=CreditsCache(database, gateway, settings.submit_lease),
        storage=Storage(settings.storage_url),
        egress_http=guarded_client(settings.egress_allow, settings.webhook_timeout),
    )
