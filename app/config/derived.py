"""What follows from the settings: limits, leases and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

from app.config.database_url import DatabaseLimits, is_sqlite
from app.config.settings import SettingsFields
from app.config.sources import SECRETS

NO_PUBLIC_URL = "https://soundpost.invalid"


class Settings(SettingsFields):
    """The settings of a process, and what is derived from them. Its secrets alone may change while it runs."""

    def take_secrets(self, fresh: Settings) -> Sequence[str]:
        """Take the secrets of newly read settings; return the names of the fields that changed."""
        changed = [name for name in map(str.lower, SECRETS) if getattr(self, name) != getattr(fresh, name)]
        for name in changed:
            setattr(self, name, getattr(fresh, name))
        return changed

    def sent_model(self, ordered: str) -> str:
        """The model that the upstream is asked for where this one was ordered, which may be orderable no more."""
        return self.models.get(ordered, ordered)

    @property
    def default_model(self) -> str:
        """The model of a task whose request names none."""
        return next(iter(self.models))

    def price_of(self, model: str) -> int:
        """What a task of this model costs, in thousandths of credits: the price of what is sent for it."""
        prices = self.credit_price.by_model
        price = prices.get(self.models.get(model, model), prices.get(model, self.credit_price.other))
        return int(price * 1000)

    @property
    def lowest_price(self) -> int:
        """What a task costs at least, in thousandths of credits."""
        return min(map(self.price_of, self.models))

    @property
    def upstream_call_timeout(self) -> timedelta:
        """How long an exchange with the upstream may take; no answer to a submit is waited for beyond its deadline."""
        return min(self.upstream_timeout, self.submit_deadline)

    @property
    def submit_lease(self) -> timedelta:
        """How long a claimed submit is ours; it outlives the request, so that nobody settles it before its response."""
        return self.upstream_call_timeout + timedelta(seconds=15)

    @property
    def webhook_lease(self) -> timedelta:
        """How long a claimed delivery is ours; one that ended mid-request would send the same event twice at once."""
        return self.webhook_timeout + timedelta(seconds=15)

    @property
    def webhook_link_ttl(self) -> timedelta:
        """
        How long a signed link in a webhook works: as long as others, counted from the last attempt.

        Jitter and `Retry-After` extend each delay of the schedule to at most twice its length.
        """
        return self.link_ttl + 2 * sum(self.webhook_schedule, timedelta())

    @property
    def audio_limit(self) -> int:
        """The largest audio file that is kept, in bytes."""
        return int(self.audio_max_mb * 1_000_000)

    @property
    def callback_base(self) -> str:
        """The beginning of callback URLs; the upstream refuses submits without an address, reachable or not."""
        return self.public_url or NO_PUBLIC_URL

    @property
    def link_base(self) -> str:
        """What links that we give out begin with; empty makes them path-absolute."""
        return self.base_url or self.public_url or ""

    @property
    def database_limits(self) -> DatabaseLimits:
        """The connections of each process, and how long statements and waits for locks may take."""
        return DatabaseLimits(
            self.database_pool_size,
            self.database_max_overflow,
            self.database_statement_timeout,
            self.database_lock_timeout,
        )

    @property
    def upstream_fingerprint(self) -> str:
        """The beginning of the upstream key's SHA-256: it tells keys apart and gives none away. Empty without a key."""
        key = self.upstream_api_key.get_secret_value() if self.upstream_api_key else ""
        return sha256(key.encode("utf-8", "replace")).hexdigest()[:8] if key else ""

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is the embedded one."""
        return is_sqlite(self.database_url)
