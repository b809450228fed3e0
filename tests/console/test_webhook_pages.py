"""The pages of webhooks: whose endpoints and deliveries they show, and what can be done there."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest

from app.enums import DisabledBy
from app.models import WebhookEndpoint
from tests.console.visiting import HOSTILE, URL, act, add_endpoint, add_failed_delivery, browser_of, key_of
from tests.support.service import Service, serve


async def test_a_caller_sees_its_own_webhooks_and_an_admin_all(service: Service) -> None:
    endpoint_id = await add_endpoint(service, description="Staging")
    delivery_id = await add_failed_delivery(service, endpoint_id)
    paths = "/console/webhooks", f"/console/webhooks/{endpoint_id}", f"/console/deliveries/{delivery_id}"
    keys = [await key_of(service, "other"), await key_of(service, "chief", is_admin=True)]
    async with (
        browser_of(service) as mine,
        browser_of(service, keys[0]) as other,
        browser_of(service, keys[1]) as admin,
    ):
        found = {name: [await browser.get(path) for path in paths] for name, browser in
                 (("mine", mine), ("other", other), ("admin", admin))}  # fmt: skip

    assert [page.status_code for page in found["other"]] == [200, 404, 404]
    assert URL not in found["other"][0].text
    for name in ("mine", "admin"):
        assert [page.status_code for page in found[name]] == [200, 200, 200]
        assert all(URL in page.text and "503" in page.text for page in found[name])
        assert "failing" in found[name][0].text
        assert "Service Unavailable" in found[name][2].text
        assert ('<td class="more">tests</td>' in found[name][0].text) == (name == "admin")


@pytest.mark.parametrize("is_admin", [False, True])
async def test_what_failed_is_sent_again(service: Service, is_admin: bool) -> None:
    endpoint_id = await add_endpoint(service)
    delivery_id = await add_failed_delivery(service, endpoint_id)
    since = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M")
    key = {"key": await key_of(service, "chief", is_admin=True)} if is_admin else {}
    async with browser_of(service, **key) as browser:
        resent = await act(browser, f"/console/deliveries/{delivery_id}/resend")
        tested = await act(browser, f"/console/webhooks/{endpoint_id}/test")
        recovered = await act(browser, f"/console/webhooks/{endpoint_id}/recover", since=since, until="")
        unclear = await act(browser, f"/console/webhooks/{endpoint_id}/recover", since="yesterday")
    deliveries = (await service.client.get("/v1/deliveries")).json()["items"]

    assert "The delivery is due now." in resent.text
    assert "A test is on its way." in tested.text
    assert "2 deliveries are due again." in recovered.text
    assert unclear.status_code == 422
    assert [(each["status"], each["event_type"]) for each in deliveries] == 2 * [("pending", "webhook.test")]


@pytest.mark.parametrize("is_admin", [False, True])
async def test_endpoint_is_disabled_and_enabled(service: Service, is_admin: bool) -> None:
    endpoint_id = await add_endpoint(service)
    key = {"key": await key_of(service, "chief", is_admin=True)} if is_admin else {}
    found = []
    async with browser_of(service, **key) as browser:
        for change in ("disable", "enable", "destroy"):
            page = await act(browser, f"/console/webhooks/{endpoint_id}/{change}")
            endpoint = (await service.client.get(f"/v1/webhook-endpoints/{endpoint_id}")).json()
            found.append((page.status_code, endpoint["disabled"], endpoint["disabled_by"]))

    assert found == [(200, True, "owner"), (200, False, None), (404, False, None)]


async def test_headers_and_rate_are_set_and_values_never_shown(service: Service) -> None:
    endpoint_id = await add_endpoint(service)
    path = f"/console/webhooks/{endpoint_id}"
    lines = "Authorization: Bearer 4f7a90c2: more\r\n\r\n  x-tenant:blue"
    shown = []
    async with browser_of(service) as browser:
        for action, fields in (("headers", {"headers": lines}), ("rate", {"rate": "10/2.5"}), ("rate", {})):
            shown.append(await act(browser, f"{path}/{action}", **fields))
            endpoint = (await service.client.get(f"/v1/webhook-endpoints/{endpoint_id}")).json()
            assert endpoint["headers"] == ["Authorization", "x-tenant"]
            assert endpoint["rate"] == fields.get("rate")
        refused = [
            await act(browser, f"{path}/headers", headers=wrong)
            for wrong in ("Host: 4f7a90c2", "4f7a90c2", "X-A: 4f7a90c2\nX-A: 2", "X-A: 4f7a90c2\u00fc")
        ]
        refused.append(await act(browser, f"{path}/rate", rate="4f7a90c2"))
        removed = await act(browser, f"{path}/headers")

    assert "Authorization, x-tenant" in shown[0].text
    assert "10 attempts in any 2.5 s" in shown[1].text
    assert "no limit" in shown[2].text
    assert "none of its own" in removed.text
    assert [page.status_code for page in refused] == [422] * 5
    assert not any("4f7a90c2" in page.text.replace('Bearer 4f7a90c2"', "") for page in (*shown, *refused))


@pytest.mark.parametrize("action", ["test", "recover", "disable", "enable", "headers", "rate"])
async def test_nobody_acts_on_webhooks_of_others(service: Service, action: str) -> None:
    endpoint_id = await add_endpoint(service)
    delivery_id = await add_failed_delivery(service, endpoint_id)
    async with browser_of(service, await key_of(service, "other")) as browser:
        refused = await act(browser, f"/console/webhooks/{endpoint_id}/{action}", since="2026-01-01T00:00")
        resent = await act(browser, f"/console/deliveries/{delivery_id}/resend")

    assert (refused.status_code, resent.status_code) == (404, 404)


async def test_states_of_endpoints_are_told_in_words(service: Service) -> None:
    ids = [await add_endpoint(service, url=f"{URL}/{number}") for number in range(5)]
    async with service.database.transaction() as (session, now):
        rows = [await session.get_one(WebhookEndpoint, id_) for id_ in ids]
        rows[1].failing_since = now - timedelta(hours=3)
        rows[2].paused_until = now + timedelta(hours=2)
        for row, by in ((rows[3], DisabledBy.gone), (rows[4], DisabledBy.failing)):
            row.disabled_at, row.disabled_by = now, by
    async with browser_of(service) as browser:
        page = await browser.get("/console/webhooks")
    text = " ".join(re.sub("<[^>]+>", " ", page.text).split())

    for words in ("✓ enabled", "! failing since 3 h ago", "‖ paused", "it answered 410", "it failed for 5 days"):
        assert words in text


async def test_deliveries_are_filtered_and_paged_by_the_url(service: Service) -> None:
    endpoint_id = await add_endpoint(service)
    failed = await add_failed_delivery(service, endpoint_id)
    for _ in range(26):
        (await service.client.post(f"/v1/webhook-endpoints/{endpoint_id}/test")).raise_for_status()
    async with browser_of(service) as browser:
        canonical = await browser.get("/console/webhooks?status=given_up&task_id=&endpoint_id=")
        pages = [await browser.get("/console/webhooks?status=given_up")]
        for path in ("/console/webhooks?status=pending", f"/console/webhooks/{endpoint_id}?status=pending"):
            pages.append(await browser.get(path))
            pages.append(await browser.get(unescape(re.findall('rel="next" href="([^"]+)"', pages[-1].text)[0])))
        nonsense = await browser.get("/console/webhooks?cursor=nonsense")

    found = [re.findall('href="/console/deliveries/([0-9a-f]+)"', page.text) for page in pages]
    assert canonical.headers["location"] == "/console/webhooks?status=given_up"
    assert found[0] == [failed]
    assert [len(ids) for ids in found[1:]] == [25, 1, 25, 1]
    assert not set(found[1]) & set(found[2])
    assert nonsense.status_code == 422


async def test_nothing_that_receivers_or_callers_wrote_is_markup(service: Service) -> None:
    endpoint_id = await add_endpoint(service, description=HOSTILE, url=f"{URL}?{HOSTILE.replace(' ', '')[:30]}'")
    delivery_id = await add_failed_delivery(service, endpoint_id, response=HOSTILE)
    async with browser_of(service) as browser:
        pages = [
            await browser.get(f"/console/{path}")
            for path in ("webhooks", f"webhooks/{endpoint_id}", f"deliveries/{delivery_id}")
        ]

    assert [page.status_code for page in pages] == [200, 200, 200]
    assert all("<script>alert" not in page.text and "<img" not in page.text for page in pages)
    assert HOSTILE in unescape(pages[2].text)


async def test_forms_lead_back_behind_a_prefix(database_url: str) -> None:
    async with serve(database_url, base_url="http://gateway.example/sound") as service, browser_of(service) as browser:
        endpoint_id = await add_endpoint(service)
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        page = await browser.get(f"/console/webhooks/{endpoint_id}", headers={"Cookie": cookie})
        action = re.findall('action="([^"]+/test)"', page.text)[0]
        token = re.findall('name="csrf_token" value="([^"]+)"', page.text)[0]
        path = action.removeprefix("/sound")
        answer = await browser.post(path, data={"csrf_token": token}, headers={"Cookie": cookie})

    assert action == f"/sound/console/webhooks/{endpoint_id}/test"
    assert answer.headers["location"].startswith("/sound/console/deliveries/")
    assert "Path=/sound/console" in answer.headers["set-cookie"]
