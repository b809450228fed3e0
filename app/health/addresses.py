"""Whether the addresses that we give to others lead back to this service."""

from __future__ import annotations

import secrets
from datetime import timedelta

import httpx

from app.config import CALLBACKS_PATH, Settings
from app.egress import is_internal, plain_client
from app.health.results import Check
from app.keyring import Keyring

PUBLIC_URL_TIMEOUT = timedelta(seconds=15)


async def check_public_url(settings: Settings, keyring: Keyring) -> Check:
    """Whether SOUNDPOST_PUBLIC_URL leads to a service with our secret keys, which answers a random challenge."""
    if settings.public_url is None:
        return Check(status="ok", detail="not set: no callback can come, and polls do the work")
    if is_internal(settings.public_url) and not is_internal(settings.upstream_url):
        problem = f"is {settings.public_url}, which the upstream cannot reach: set it to an address on the internet"
        return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}, or unset it, and polls do the work")
    challenge = secrets.token_hex(16)
    try:
        async with plain_client(PUBLIC_URL_TIMEOUT) as http:
            response = await http.get(f"{settings.public_url}{CALLBACKS_PATH}{challenge}")
    except httpx.HTTPError as error:
        problem = f"cannot be reached from here ({type(error).__name__}: {error}): does `soundpost serve` run?"
        return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}")
    if response.is_success and response.text == keyring.prove_reach(challenge):
        return Check(status="ok", detail="it reaches this service")
    problem = f"reaches another server (HTTP {response.status_code}): it must pass {CALLBACKS_PATH} on"
    return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}")
