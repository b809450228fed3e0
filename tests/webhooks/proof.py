"""Secrets that are rotated during a thousand deliveries. `make proof` runs it."""

import pytest

from tests.webhooks.test_proofs import check_rotations


@pytest.mark.timeout(600)
async def test_every_signature_of_a_thousand_verifies_while_secrets_are_rotated(database_url: str) -> None:
    await check_rotations(database_url, events=200)
