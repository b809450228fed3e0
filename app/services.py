"""The composition root: every long-lived object of a process, built once and handed to routes, workers and commands."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from app.auth.last_use import LastUses
from app.budgets.repository import total_charged
from app.budgets.service import BudgetService
from app.callbacks.service import CallbackService
from app.clips.service import ClipService
from app.config import PREFIX, SECRETS, Settings, SettingsUnusable, read_settings
from app.database.connections import is_same_database
from app.database.engine import Clock, Database, database_clock
from app.database.wakeups import Wakeups
from app.dropin.callbacks import publish_to_callback_url
from app.egress import guarded_client, upstream_client
from app.keyring import Keyring, KeyringUnusable, load_or_create_keyring
from app.observability.metrics import Metrics
from app.signed_urls import SignedUrls
from app.storage.store import Storage
from app.tasks.events import EventRecorder, publish_to_webhook_url
from app.tasks.lifecycle import TaskLifecycle
from app.tasks.orders.service import OrderService
from app.tasks.queue.positions import QueuePositions
from app.tasks.service import TaskService
from app.tasks.waiting import Waiters
from app.upstream.credits import CreditsCache
from app.upstream.gateway import MeasuredUpstream, UpstreamGateway
from app.upstream.pacing import Pacer
from app.upstream.suno.client import SunoApi
from app.webhooks.lifecycle import WebhookLifecycle
from app.webhooks.service import WebhookService


@dataclass(frozen=True, slots=True)
class Services:
    """What one process works with."""

    settings: Settings
    database: Database
    last_uses: LastUses
    keyring: Keyring
    signed_urls: SignedUrls
    wakeups: Wakeups
    metrics: Metrics
    rng: random.Random
    lifecycle: TaskLifecycle
    orders: OrderService
    tasks: TaskService
    clips: ClipService
    waiters: Waiters
    callbacks: CallbackService
    budgets: BudgetService
    webhooks: WebhookService
    webhook_lifecycle: WebhookLifecycle
    upstream: SunoApi
    gateway: UpstreamGateway
    upstream_http: httpx.AsyncClient
    credits: CreditsCache
    storage: Storage
    egress_http: httpx.AsyncClient

    def renew_secrets(self) -> Sequence[str]:
        """
        Read the settings again and work with their secrets from now on; return the fields that changed.

        Connections that are open stay. Raises SettingsUnusable, and then nothing changes.
        """
        fresh, keyring = read_secrets(self.settings)
        changed = self.settings.take_secrets(fresh)
        self.keyring.become(keyring)
        self.database.url = fresh.database_url
        self.upstream.use_keys(*_upstream_keys(fresh))
        self.gateway.key = fresh.upstream_fingerprint
        return changed

    async def close(self) -> None:
        """Return every connection."""
        await self.credits.close()
        await self.upstream_http.aclose()
        await self.egress_http.aclose()
        await self.database.close()


def read_secrets(settings: Settings) -> tuple[Settings, Keyring]:
    """
    Read the settings again for a process that runs with these; return them with their keyring.

    Raises SettingsUnusable where their secrets cannot take the place of the present ones.
    """
    fresh = read_settings()
    gone = [name for name in SECRETS if getattr(settings, name.lower()) and not getattr(fresh, name.lower())]
    if gone:
        # Most likely a file that is just being written. Without a key, callbacks would no longer be checked.
        raise SettingsUnusable(f"{PREFIX}{gone[0]} is not set any more: set it, or restart to do without it")
    if not is_same_database(settings.database_url, fresh.database_url):
        raise SettingsUnusable(f"{PREFIX}DATABASE_URL names another database: restart to change more than its password")
    try:
        # One that is made now would refuse every callback that is under way.
        return fresh, load_or_create_keyring(fresh, may_create=False)
    except KeyringUnusable as error:
        raise SettingsUnusable(str(error)) from error


def build_services(settings: Settings, clock: Clock = database_clock) -> Services:
    """Build every service; nothing is connected yet. `clock` returns the database's time. Raises KeyringUnusable."""
    keyring = load_or_create_keyring(settings)
    signed_urls = SignedUrls(keyring, settings.link_base, settings.link_ttl)
    database = Database(settings.database_url, clock, settings.database_limits)
    wakeups = Wakeups(database)
    metrics = Metrics()
    database.count_in(metrics)
    rng = random.Random()  # noqa: S311 - spreads retries, not for security
    # The body of a webhook is made once, and sent again for days.
    kept_urls = signed_urls.lasting(settings.webhook_link_ttl)
    publishers = publish_to_webhook_url, publish_to_callback_url
    recorder = EventRecorder(kept_urls, publishers, settings.webhook_schedule[0], metrics)
    lifecycle = TaskLifecycle(settings, recorder, rng)
    webhook_lifecycle = WebhookLifecycle(settings, keyring, rng)
    positions = QueuePositions(settings)
    tasks = TaskService(database, lifecycle, signed_urls, positions)
    waiters = Waiters(database, wakeups, signed_urls, positions)
    pacer = Pacer(settings.upstream_rate, hold=settings.submit_lease)
    upstream_http = upstream_client(settings.upstream_url, settings.upstream_call_timeout)
    api_key, callback_key = _upstream_keys(settings)
    upstream = SunoApi(upstream_http, api_key, settings.upstream_call_timeout, callback_key, metrics)
    measured = MeasuredUpstream(upstream, metrics)
    gateway = UpstreamGateway(measured, pacer, database, settings.hold_recheck, settings.upstream_fingerprint)
    return Services(
        settings=settings,
        database=database,
        last_uses=LastUses(database),
        keyring=keyring,
        signed_urls=signed_urls,
        wakeups=wakeups,
        metrics=metrics,
        rng=rng,
        lifecycle=lifecycle,
        orders=OrderService(settings, database, lifecycle, signed_urls, positions, metrics),
        tasks=tasks,
        clips=ClipService(tasks, waiters),
        waiters=waiters,
        callbacks=CallbackService(database, keyring, lifecycle, upstream, metrics),
        budgets=BudgetService(database),
        webhooks=WebhookService(database, webhook_lifecycle, keyring),
        webhook_lifecycle=webhook_lifecycle,
        upstream=upstream,
        gateway=gateway,
        upstream_http=upstream_http,
        credits=CreditsCache(database, gateway, settings.submit_lease, total_charged),
        storage=Storage(settings.storage_url),
        egress_http=guarded_client(settings.egress_allow, settings.webhook_timeout),
    )


def _upstream_keys(settings: Settings) -> tuple[str, str | None]:
    """The key that calls carry, empty without one, and the one that verifies callbacks."""
    api_key, callback_key = settings.upstream_api_key, settings.callback_hmac_key
    return api_key.get_secret_value() if api_key else "", callback_key.get_secret_value() if callback_key else None
