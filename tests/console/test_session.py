"""Signing in: a cookie that works as long as its key, and forms that only our own pages can send."""

import re
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.auth.api_keys import revoke_key, rotate_key
from app.auth.callers import hash_key
from app.console.session import LIFETIME
from app.console.sign_in import MAX_FAILURES
from app.models import ApiKey
from tests.console.visiting import browser_of
from tests.support.clock import MORNING
from tests.support.service import Service, serve
from tests.support.settings import KEY

HOUR = 3600
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def _key_id(service: Service) -> str:
    async with service.database.reads() as session:
        return (await session.scalars(select(ApiKey.id).where(ApiKey.name == "tests"))).one()


async def _csrf_token(client: httpx.AsyncClient) -> str:
    found = re.search('name="csrf_token" value="([^"]+)"', (await client.get("/console/tasks")).text)
    assert found
    return found[1]


async def test_who_is_not_signed_in_is_led_to_the_form_and_back(service: Service) -> None:
    async with browser_of(service, None) as browser:
        asked = await browser.get("/console/tasks?status=failed")
        form = await browser.get(asked.headers["location"])
        target = re.search('name="next" value="([^"]+)"', form.text)
        assert target
        signed_in = await browser.post("/console/sign-in", data={"key": KEY, "next": target[1]})

    assert asked.status_code == 303
    assert signed_in.headers["location"] == "/console/tasks?status=failed"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/console/../v1/tasks\\@evil",
        "/docs",
        "/console/../x",
        "/console/a/../..//x",
    ],
)
async def test_nobody_is_led_elsewhere_by_signing_in(service: Service, target: str) -> None:
    async with browser_of(service, None) as browser:
        signed_in = await browser.post("/console/sign-in", data={"key": KEY, "next": target})

    assert signed_in.headers["location"] == "/console/tasks"


async def test_cookie_holds_no_key_and_only_the_console_gets_it(service: Service) -> None:
    async with browser_of(service, None) as browser:
        signed_in = await browser.post("/console/sign-in", data={"key": f" {KEY}\n"})
    cookie = signed_in.headers["set-cookie"]

    assert KEY not in cookie
    assert hash_key(KEY) not in cookie
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {
        "httponly",
        "samesite=strict",
        "path=/console",
        f"max-age={int(LIFETIME.total_seconds())}",
    }


async def test_cookie_is_secure_and_below_the_prefix_where_the_base_url_says_so(database_url: str) -> None:
    async with serve(database_url, base_url="https://gateway.example/sound") as service, browser_of(service) as browser:
        asked = await browser.get("/console/tasks")
        signed_in = await browser.post("/console/sign-in", data={"key": KEY})
        cookie = signed_in.headers["set-cookie"]
        page = await browser.get("/console/tasks", headers={"Cookie": cookie.partition(";")[0]})

    assert asked.headers["location"] == "/sound/console/sign-in"
    assert cookie.startswith("__Secure-soundpost=")
    assert "; Path=/sound/console;" in cookie
    assert "; Secure" in cookie
    links = re.findall(r'(?:href|action)="(/[^"]*)"', page.text)
    assert links
    assert [link for link in links if not link.startswith("/sound/console/")] == []


@pytest.mark.parametrize("key", ["", "wrong", "ключ", "x" * 5000])
async def test_wrong_key_signs_nobody_in(service: Service, key: str) -> None:
    async with browser_of(service, None) as browser:
        refused = await browser.post("/console/sign-in", data={"key": key})

    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    assert "This key does not work" in refused.text


async def test_keys_cannot_be_guessed_quickly(service: Service) -> None:
    async with browser_of(service, None) as browser:
        answers = [await browser.post("/console/sign-in", data={"key": "wrong"}) for _ in range(MAX_FAILURES)]
        refused = await browser.post("/console/sign-in", data={"key": KEY})

    assert {answer.status_code for answer in answers} == {401}
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_session_ends_when_its_key_is_revoked(service: Service) -> None:
    async with browser_of(service) as browser:
        before = await browser.get("/console/tasks")
        async with service.database.writes.begin() as session:
            await revoke_key(session, await _key_id(service), MORNING)
        after = await browser.get("/console/tasks")

    assert (before.status_code, after.status_code) == (200, 303)


async def test_session_of_a_rotated_key_lasts_as_long_as_the_key(service: Service) -> None:
    async with browser_of(service) as browser:
        found = []
        for overlap in (LIFETIME, -LIFETIME):
            async with service.database.transaction() as (session, now):
                await rotate_key(session, await _key_id(service), now, overlap)
            found.append((await browser.get("/console/tasks")).status_code)

    assert found == [200, 303]


@pytest.mark.parametrize(("age", "status"), [(HOUR, 200), (LIFETIME.total_seconds() + 1, 303)])
async def test_session_ends_after_half_a_day(service: Service, age: float, status: int) -> None:
    subject = f"{await _key_id(service)}.{int(time.time() - age)}"
    signature = service.services.keyring.token("console session", f"{subject}.{hash_key(KEY)}")
    async with browser_of(service, None, Cookie=f"soundpost={subject}.{signature}") as browser:
        found = await browser.get("/console/tasks")

    assert found.status_code == status


@pytest.mark.parametrize(
    "cookie", ["", "x", "..", "a.1.b", "a.99999999999999.b", "a.-1.b", "%00.1.x", "а.1.б", "a.¹.b"]
)
async def test_no_other_cookie_is_a_session(service: Service, cookie: str) -> None:
    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False, timeout=30) as browser:
        found = await browser.get("/console/tasks", headers={b"Cookie": f"soundpost={cookie}".encode()})

    assert found.status_code == 303


async def test_altered_cookie_is_no_session(service: Service) -> None:
    async with browser_of(service) as browser:
        key_id, issued, signature = browser.cookies["soundpost"].split(".")
    for changed in (f"{'0' * 32}.{issued}.{signature}", f"{key_id}.{int(issued) + 1}.{signature}"):
        async with browser_of(service, None, Cookie=f"soundpost={changed}") as browser:
            assert (await browser.get("/console/tasks")).status_code == 303


@pytest.mark.parametrize(
    ("headers", "token", "status"),
    [
        ({}, True, 303),
        ({}, False, 403),
        ({"Sec-Fetch-Site": "same-origin"}, True, 303),
        ({"Sec-Fetch-Site": "same-origin"}, False, 403),
        ({"Sec-Fetch-Site": "same-site"}, True, 403),
        ({"Sec-Fetch-Site": "cross-site"}, True, 403),
        ({"Origin": "https://evil.example"}, True, 403),
        ({"Origin": "null"}, True, 403),
        ({"Content-Type": "application/json"}, True, 415),
        ({"Content-Type": "text/plain"}, True, 415),
    ],
)
async def test_only_a_form_of_our_own_pages_does_anything(
    service: Service, headers: dict[str, str], token: bool, status: int
) -> None:
    async with browser_of(service) as browser:
        fields = f"csrf_token={await _csrf_token(browser) if token else 'wrong'}"
        answer = await browser.post("/console/sign-out", content=fields, headers={**FORM, **headers})
        after = await browser.get("/console/tasks")

    assert answer.status_code == status
    assert after.status_code == (303 if status == 303 else 200)


async def test_token_of_another_session_is_refused(service: Service) -> None:
    subject = f"{await _key_id(service)}.{int(time.time()) - HOUR}"
    signature = service.services.keyring.token("console session", f"{subject}.{hash_key(KEY)}")
    async with browser_of(service, None, Cookie=f"soundpost={subject}.{signature}") as other:
        token = await _csrf_token(other)
    async with browser_of(service) as browser:
        answer = await browser.post("/console/sign-out", data={"csrf_token": token})

    assert answer.status_code == 403


async def test_origin_may_be_that_of_the_host_or_of_the_base_url(database_url: str) -> None:
    async with serve(database_url, base_url="https://gateway.example") as service, browser_of(service, None) as browser:
        found: dict[str, Any] = {}
        for origin in (str(service.client.base_url).rstrip("/"), "https://gateway.example", "https://evil.example"):
            answer = await browser.post("/console/sign-in", data={"key": KEY}, headers={"Origin": origin})
            found[origin] = answer.status_code

    assert list(found.values()) == [303, 303, 403]


async def test_a_link_from_another_site_is_opened_by_asking_again(service: Service) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    async with browser_of(service, None) as browser:
        page = await browser.get("/console/tasks", headers=headers)
        posted = await browser.post("/console/sign-out", data={}, headers=headers)

    assert page.status_code == 200
    assert '<meta http-equiv="refresh" content="0">' in page.text
    assert posted.status_code in (401, 403)


async def test_without_the_console_there_is_nothing(database_url: str) -> None:
    async with serve(database_url, console=False) as service:
        found = [await service.client.get(path) for path in ("/console", "/console/", "/console/tasks")]
        posted = await service.client.post("/console/sign-in", data={"key": KEY})

    assert {answer.status_code for answer in (*found, posted)} == {404}


async def test_pages_have_the_headers_of_pages(service: Service) -> None:
    async with browser_of(service) as browser:
        page = await browser.get("/console/tasks")
        asset = re.findall(r'"(/console/static/[^"]+)"', page.text)[0]
        file, stale = await browser.get(asset), await browser.get(re.sub("static/[0-9a-f]+", "static/0", asset))
        absent = [
            await browser.get(f"/console/static/0/{name}") for name in ("", "x.css", "../assets.py", "%2e%2e/assets.py")
        ]
        wrong_method = await browser.put("/console/tasks")
        missing = await browser.get("/console/nothing")

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert (file.status_code, stale.status_code) == (200, 200)
    assert "immutable" in file.headers["cache-control"]
    assert stale.headers["cache-control"] == "no-cache"
    assert {answer.status_code for answer in absent} == {404}
    assert wrong_method.status_code == 405
    assert missing.status_code == 404
    assert missing.headers["content-type"].startswith("text/html")
