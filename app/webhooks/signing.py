"""Standard Webhooks: the secrets that callers verify with, and the headers that they verify."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

from app.keyring import Keyring
from app.models import ApiKey, WebhookEndpoint

# So long a receiver may go on verifying with the secret before.
OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A secret by what it derives from; rotating it is counting on, and nothing is stored."""

    purpose: str
    owner_id: str
    generation: int
    rotated_at: datetime | None

    def text(self, keyring: Keyring) -> str:
        """The secret in the form that receivers' libraries take."""
        return "whsec_" + base64.b64encode(keyring.derive(self.purpose, self._subject(self.generation))).decode()

    def valid_at(self, now: datetime, keyring: Keyring) -> tuple[bytes, ...]:
        """
        Return every secret that a receiver may hold at this moment, the newest first.

        These are the one before, for a day after a rotation, and what derives from the
        service's older keys for as long as these are listed.
        """
        overlaps = self.rotated_at is not None and now < self.rotated_at + OVERLAP
        generations = (self.generation, self.generation - 1) if overlaps else (self.generation,)
        return tuple(
            derived
            for generation in generations
            for derived in keyring.derive_all(self.purpose, self._subject(generation))
        )

    def _subject(self, generation: int) -> str:
        return f"{self.owner_id}:{generation}"


def secret_of(owner: WebhookEndpoint | ApiKey) -> SigningSecret:
    """What signs for this endpoint, or for the `webhook_url` of this caller's tasks."""
    purpose = "webhook-endpoint" if isinstance(owner, WebhookEndpoint) else "webhook-default"
    return SigningSecret(purpose, owner.id, owner.secret_generation, owner.secret_rotated_at)


def sign(secrets: Sequence[bytes], message_id: str, sent_at: datetime, body: bytes) -> Mapping[str, str]:
    """Return the headers under which a receiver that knows any of these secrets believes the body."""
    # The library stamps UTC on the datetime instead of converting to it, and knows one secret only.
    sent_at = sent_at.astimezone(UTC)
    signatures = [Webhook(secret).sign(message_id, sent_at, body.decode()) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
