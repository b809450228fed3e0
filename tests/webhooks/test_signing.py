"""Signatures follow Standard Webhooks: a fixed vector, two libraries, and rotations."""

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
import standardwebhooks
import svix.webhooks

from app.keyring import Keyring
from app.webhooks.signing import SigningSecret, sign

NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
KEYRING = Keyring("a-key-of-the-tests-long-enough")


def test_signature_is_that_of_the_standards_vector() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    sent_at = datetime.fromtimestamp(1614265330, UTC)

    headers = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", sent_at, b'{"test": 2432232314}')

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_time_zone_does_not_change_the_signature() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert sign([b"secret"], "id", elsewhere, b"{}") == sign([b"secret"], "id", NOW, b"{}")


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.webhooks.Webhook])
@pytest.mark.parametrize("body", [b'{"a":1}', '{"prompt":"Gewitter \N{CLOUD WITH LIGHTNING} über dem See"}'.encode()])
def test_both_libraries_verify_what_we_sign(
    library: type[standardwebhooks.Webhook] | type[svix.webhooks.Webhook], body: bytes
) -> None:
    secret = SigningSecret("webhook-endpoint", "e1", 0, None)
    now = datetime.now(UTC)

    headers = sign(secret.valid_at(now, KEYRING), "id", now, body)

    library(secret.text(KEYRING)).verify(body, dict(headers))


def test_secret_is_32_bytes_behind_the_standards_prefix() -> None:
    text = SigningSecret("webhook-endpoint", "e1", 0, None).text(KEYRING)

    assert text.startswith("whsec_")
    assert len(base64.b64decode(text.removeprefix("whsec_"))) == 32


def test_secrets_differ_by_owner_purpose_and_generation() -> None:
    named = [("webhook-endpoint", "e1", 0), ("webhook-endpoint", "e1", 1), ("webhook-endpoint", "e2", 0)]
    texts = {SigningSecret(*name, None).text(KEYRING) for name in [*named, ("webhook-default", "e1", 0)]}

    assert len(texts) == 4


@pytest.mark.parametrize(("age", "count"), [(0, 2), (24 * 3600 - 1, 2), (24 * 3600, 1)])
def test_previous_secret_also_signs_for_24_hours(age: float, count: int) -> None:
    before = SigningSecret("webhook-endpoint", "e1", 0, None).valid_at(NOW, KEYRING)
    rotated = SigningSecret("webhook-endpoint", "e1", 1, NOW - timedelta(seconds=age))

    valid = rotated.valid_at(NOW, KEYRING)

    assert len(valid) == count
    assert (before[0] in valid) == (count == 2)


def test_signatures_still_verify_after_a_new_secret_key_is_added() -> None:
    secret = SigningSecret("webhook-endpoint", "e1", 0, None)
    both = Keyring("a-newer-key-also-long-enough", "a-key-of-the-tests-long-enough")

    assert secret.valid_at(NOW, KEYRING)[0] in secret.valid_at(NOW, both)
    assert secret.text(both) != secret.text(KEYRING)
