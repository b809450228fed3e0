"""What every loop works with."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from app.config import Settings
from app.database.engine import Database
from app.database.wakeups import Wakeups
from app.keyring import Keyring
from app.signed_urls import SignedUrls
from app.storage.store import Storage
from app.tasks.lifecycle import TaskLifecycle
from app.upstream.pacing import Pacer
from app.upstream.suno.client import Upstream
from app.webhooks.service import Webhooks


@dataclass(frozen=True, slots=True)
class Services:
    """The joined service, as the loops see it."""

    settings: Settings
    database: Database
    keyring: Keyring
    wakeups: Wakeups
    lifecycle: TaskLifecycle
    pacer: Pacer
    upstream_http: httpx.AsyncClient
    upstream: Upstream
    webhooks: Webhooks
    signed_urls: SignedUrls
    storage: Storage
    egress_http: httpx.AsyncClient
