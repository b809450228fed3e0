"""What every loop works with."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from app.clips.storage import Storage
from app.config import Settings
from app.db import Database
from app.links import Links
from app.secrets import Secrets
from app.signals import Signals
from app.tasks.service import TaskLife
from app.upstream.client import Upstream
from app.upstream.pacing import Pacer
from app.webhooks.service import Webhooks


@dataclass(frozen=True, slots=True)
class Parts:
    """The joined service, as the loops see it."""

    settings: Settings
    database: Database
    secrets: Secrets
    signals: Signals
    life: TaskLife
    pacer: Pacer
    upstream_http: httpx.AsyncClient
    upstream: Upstream
    webhooks: Webhooks
    links: Links
    storage: Storage
    egress_http: httpx.AsyncClient
