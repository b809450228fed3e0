"""Visits of the console by HTTP alone, and what there is to see: keys, endpoints and failed deliveries."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx

from app.enums import DeliveryStatus
from app.models import Delivery, DeliveryAttempt, WebhookEndpoint
from tests.support.service import Service, client_with_key
from tests.support.settings import KEY

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>"
URL = "https://receiver.example/hook"


@asynccontextmanager
async def browser_of(service: Service, key: str | None = KEY, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps cookies, signed in with this key."""
    url = service.client.base_url
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
        if key is not None:
            answer = await client.post("/console/sign-in", data={"key": key})
            assert answer.status_code == 303, answer.text
        yield client


async def key_of(service: Service, name: str, *, is_admin: bool = False) -> str:
    """A new key of this name."""
    async with await client_with_key(service, name, is_admin=is_admin) as client:
        return str(client.headers["Authorization"]).removeprefix("Bearer ")


async def add_endpoint(service: Service, **fields: object) -> str:
    """An endpoint of the caller of the tests; returns its id."""
    answer = await service.client.post("/v1/webhook-endpoints", json={"url": URL, **fields})
    return str(answer.raise_for_status().json()["id"])


async def add_failed_delivery(service: Service, endpoint_id: str, response: str = "Service Unavailable") -> str:
    """A delivery to the endpoint that was given up after one attempt; returns its id."""
    sent = (await service.client.post(f"/v1/webhook-endpoints/{endpoint_id}/test")).raise_for_status().json()
    async with service.database.transaction() as (session, now):
        delivery = await session.get_one(Delivery, sent["id"])
        delivery.status, delivery.due_at, delivery.is_ready = DeliveryStatus.given_up, None, False
        delivery.attempts_made = 1
        failed = {"status_code": 503, "error": None, "response": response, "duration_ms": 184}
        session.add(DeliveryAttempt(delivery_id=delivery.id, attempted_at=now, **failed))
        (await session.get_one(WebhookEndpoint, endpoint_id)).failing_since = now - timedelta(hours=3)
    return str(sent["id"])


async def act(browser: httpx.AsyncClient, path: str, **fields: str) -> httpx.Response:
    """Send a form with the token that the list has; return the page that follows, or the refusal."""
    token = re.findall('name="csrf_token" value="([^"]+)"', (await browser.get("/console/tasks")).text)[0]
    answer = await browser.post(path, data={"csrf_token": token, **fields})
    return await browser.get(answer.headers["location"]) if answer.status_code == 303 else answer
