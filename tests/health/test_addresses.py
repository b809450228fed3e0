"""The addresses that we give out lead back to this deployment, unencrypted nowhere on the internet."""

import pytest

from app.health.addresses import check_base_url, check_public_url
from app.keyring import Keyring
from tests.support.receivers import Reply, receiving
from tests.support.service import Service
from tests.support.settings import SECRET_KEY, UNREACHABLE, settings_of

UNUSED = "sqlite+aiosqlite:///unused.db"


async def public(url: str) -> tuple[str, str]:
    found = await check_public_url(settings_of(UNUSED, public_url=url), Keyring(SECRET_KEY))
    return found.status, found.detail


async def base(url: str | None, **settings: str | None) -> tuple[str, str]:
    found = await check_base_url(settings_of(UNUSED, base_url=url, **settings))
    return found.status, found.detail


async def test_public_url_that_reaches_this_service_is_well(service: Service) -> None:
    assert await public(str(service.client.base_url)) == ("ok", "it reaches this service")


async def test_public_url_that_reaches_another_deployment_is_found(service: Service) -> None:
    settings = settings_of(UNUSED, public_url=str(service.client.base_url))
    found = await check_public_url(settings, Keyring("a-secret-key-of-another-deployment"))

    assert (found.status, found.detail) == (
        "degraded",
        "SOUNDPOST_PUBLIC_URL reaches a Soundpost with other secret keys: give every process the same "
        "SOUNDPOST_SECRET_KEYS",
    )


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(404), "reaches another server (HTTP 404): it must pass /callbacks/ on"),
        (Reply(200, (), b"welcome"), "reaches another server (HTTP 200): it must pass /callbacks/ on"),
        (Reply(502), "reaches another server (HTTP 502): it must pass /callbacks/ on"),
        (
            Reply(308, ("Location: https://sounds.example/",)),
            "redirects (HTTP 308), which the upstream need not follow: set it to where that leads",
        ),
    ],
)
async def test_public_url_that_reaches_something_else_is_found(reply: Reply, problem: str) -> None:
    async with receiving(reply) as elsewhere:
        found = await public(elsewhere.url)

    assert found == ("degraded", f"SOUNDPOST_PUBLIC_URL {problem}")


async def test_public_url_without_tls_on_the_internet_is_found() -> None:
    status, detail = await public("http://sounds.example.")

    assert status == "degraded"
    assert detail.startswith(
        "SOUNDPOST_PUBLIC_URL begins with http://, so callbacks and their tokens cross the internet unencrypted: put "
        "TLS in front, and begin it with https://; SOUNDPOST_PUBLIC_URL cannot be reached from here ("
    )


async def test_base_url_that_reaches_a_service_is_well(service: Service) -> None:
    assert await base(str(service.client.base_url)) == ("ok", "it reaches a service")


async def test_base_url_that_is_not_set_needs_no_look() -> None:
    assert await base(None) == ("ok", "links begin with the public URL")
    assert await base(None, public_url=None) == ("ok", "links begin with a slash, as there is no public URL")


async def test_base_url_that_reaches_another_server_is_found() -> None:
    async with receiving(404) as elsewhere:
        found = await base(elsewhere.url)

    assert found == (
        "degraded",
        "SOUNDPOST_BASE_URL reaches another server (HTTP 404): it must pass every path on to us",
    )


async def test_base_url_that_only_callers_may_reach_is_told() -> None:
    assert await base(UNREACHABLE) == (
        "ok",
        "it cannot be reached from here (ConnectError: Connection refused), which is well if callers can",
    )


async def test_base_url_without_tls_on_the_internet_is_found() -> None:
    status, detail = await base("http://sounds.example.")

    assert (status, detail) == (
        "degraded",
        "SOUNDPOST_BASE_URL begins with http://, so links that need no key cross the internet unencrypted: put TLS in "
        "front, and begin it with https://",
    )
