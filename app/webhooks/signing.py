"""The signing secrets and signature headers of Standard Webhooks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

from app.keyring import Keyring
from app.models import ApiKey, WebhookEndpoint

# How long after a rotation the previous secret also signs.
OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """The values that a secret derives from; the secret itself is not stored. A rotation increments the generation."""

    purpose: str
    owner_id: str
    generation: int
    rotated_at: datetime | None
    # The fingerprint of the secret key that it was made with; None until it was first given out.
    key: str | None = None

    def text(self, keyring: Keyring) -> str:
        """The secret as `whsec_<base64>`, the format of the Standard Webhooks libraries."""
        return "whsec_" + base64.b64encode(self._derived(keyring)).decode()

    def valid_at(self, now: datetime, keyring: Keyring) -> tuple[bytes, ...]:
        """
        Return every secret that a receiver may verify with at this time, newest first.

        There is one for each key of SOUNDPOST_SECRET_KEYS, and for 24 hours after a rotation
        also those of the previous generation.
        """
        overlaps = self.rotated_at is not None and now < self.rotated_at + OVERLAP
        generations = (self.generation, self.generation - 1) if overlaps else (self.generation,)
        return tuple(
            derived
            for generation in generations
            for derived in keyring.derive_all(self.purpose, self._subject(generation))
        )

    def _derived(self, keyring: Keyring) -> bytes:
        return keyring.derive_with(self.key, self.purpose, self._subject(self.generation))

    def _subject(self, generation: int) -> str:
        return f"{self.owner_id}:{generation}"


def secret_of(owner: WebhookEndpoint | ApiKey) -> SigningSecret:
    """The secret of an endpoint, or of an API key for the `webhook_url` of its tasks."""
    purpose = "webhook-endpoint" if isinstance(owner, WebhookEndpoint) else "webhook-default"
    return SigningSecret(purpose, owner.id, owner.secret_generation, owner.secret_rotated_at, owner.secret_key)


def sign(secrets: Sequence[bytes], message_id: str, sent_at: datetime, body: bytes) -> Mapping[str, str]:
    """Return the three headers of Standard Webhooks, with one signature for each secret."""
    # The library replaces the time zone by UTC instead of converting, and signs with one secret only.
    sent_at = sent_at.astimezone(UTC)
    signatures = [Webhook(secret).sign(message_id, sent_at, body.decode()) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
