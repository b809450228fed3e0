"""Standard Webhooks: the secrets and the signature headers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook

from app.keyring import Keyring
from app.models import ApiKey, WebhookEndpoint

# How long the secret before signs too after a rotation.
OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A secret as the values that it derives from. A rotation counts the generation up; no secret is stored."""

    purpose: str
    owner_id: str
    generation: int
    rotated_at: datetime | None

    def text(self, keyring: Keyring) -> str:
        """The secret as `whsec_<base64>`, which receivers' libraries read."""
        return "whsec_" + base64.b64encode(keyring.derive(self.purpose, self._subject(self.generation))).decode()

    def valid_at(self, now: datetime, keyring: Keyring) -> tuple[bytes, ...]:
        """
        Return every secret that a receiver may hold at this time, the newest first.

        For 24 hours after a rotation that includes the one before, and always those that
        derive from the older keys of SOUNDPOST_SECRET_KEYS.
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
    """The secret of an endpoint, or of an API key for the `webhook_url` of its tasks."""
    purpose = "webhook-endpoint" if isinstance(owner, WebhookEndpoint) else "webhook-default"
    return SigningSecret(purpose, owner.id, owner.secret_generation, owner.secret_rotated_at)


def sign(secrets: Sequence[bytes], message_id: str, sent_at: datetime, body: bytes) -> Mapping[str, str]:
    """Return the three Standard Webhooks headers, signed with each of these secrets."""
    # The library stamps UTC on the datetime instead of converting to it, and takes one secret only.
    sent_at = sent_at.astimezone(UTC)
    signatures = [Webhook(secret).sign(message_id, sent_at, body.decode()) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
