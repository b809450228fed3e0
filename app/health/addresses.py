"""Whether the addresses that we give to others lead back to this service."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta

import httpx

from app.config import CALLBACKS_PATH, Settings
from app.egress import is_internal, plain_client
from app.health.results import Check
from app.keyring import Keyring

TIMEOUT = timedelta(seconds=15)
_PROOF = re.compile("[0-9a-f]{64}")


async def check_public_url(settings: Settings, keyring: Keyring) -> Check:
    """Whether SOUNDPOST_PUBLIC_URL leads to a service with our secret keys, which answers a random challenge."""
    url = settings.public_url
    if url is None:
        return Check(status="ok", detail="not set: no callback can come, and polls do the work")
    if is_internal(url) and not is_internal(settings.upstream_url):
        problem = f"is {url}, which the upstream cannot reach: set it to an address on the internet"
        return Check(status="degraded", detail=f"SOUNDPOST_PUBLIC_URL {problem}, or unset it, and polls do the work")
    found = [
        _in_the_clear(url, "callbacks and their tokens"),
        await _missed_by(url, keyring),
    ]
    if problems := [f"SOUNDPOST_PUBLIC_URL {problem}" for problem in found if problem]:
        return Check(status="degraded", detail="; ".join(problems))
    return Check(status="ok", detail="it reaches this service")


async def check_base_url(settings: Settings) -> Check:
    """Whether links with SOUNDPOST_BASE_URL lead to a service; callers may reach what this machine cannot."""
    url = settings.base_url
    if url is None or url == settings.public_url:
        first = "the public URL" if settings.public_url else "a slash, as there is no public URL"
        return Check(status="ok", detail=f"links begin with {first}")
    problems = [problem] if (problem := _in_the_clear(url, "links that need no key")) else []
    detail = "it reaches a service"
    try:
        response = await _get(f"{url}/livez")
        if not response.is_success or '"ok"' not in response.text:
            problems.append(f"reaches another server (HTTP {response.status_code}): it must pass every path on to us")
    except httpx.HTTPError as error:
        detail = f"it cannot be reached from here ({_reason(error)}), which is well if callers can"
    if problems:
        return Check(status="degraded", detail="; ".join(f"SOUNDPOST_BASE_URL {problem}" for problem in problems))
    return Check(status="ok", detail=detail)


async def _missed_by(url: str, keyring: Keyring) -> str | None:
    """Why callbacks to this public URL would not reach us."""
    challenge = secrets.token_hex(16)
    try:
        response = await _get(f"{url}{CALLBACKS_PATH}{challenge}")
    except httpx.HTTPError as error:
        return f"cannot be reached from here ({_reason(error)}): does `soundpost serve` run?"
    if response.is_redirect:
        return (
            f"redirects (HTTP {response.status_code}), which the upstream need not follow: set it to where that leads"
        )
    if response.is_success and response.text == keyring.prove_reach(challenge):
        return None
    if response.is_success and _PROOF.fullmatch(response.text):
        return "reaches a Soundpost with other secret keys: give every process the same SOUNDPOST_SECRET_KEYS"
    return f"reaches another server (HTTP {response.status_code}): it must pass {CALLBACKS_PATH} on"


def _in_the_clear(url: str, what: str) -> str | None:
    if is_internal(url) or not url.lower().startswith("http://"):
        return None
    return (
        f"begins with http://, so {what} cross the internet unencrypted: put TLS in front, and begin it with https://"
    )


async def _get(url: str) -> httpx.Response:
    async with plain_client(TIMEOUT) as http:
        return await http.get(url)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
