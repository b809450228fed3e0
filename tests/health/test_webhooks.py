"""Readiness tells which webhooks do not arrive, and what their owners can do."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import update

from app.enums import DeliveryStatus
from app.health.routes import ReadinessProbe
from app.models import Delivery, WebhookEndpoint
from tests.support.service import Service

ADVICE = "their owners can enable repaired ones by PATCH, and get what was missed by POST …/recover"


@pytest.fixture(autouse=True)
def _no_result_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadinessProbe, "fresh_for", timedelta())


async def test_endpoints_that_fail_now_and_deliveries_that_were_given_up_are_told(service: Service) -> None:
    before = await _webhooks(service)
    endpoint = (await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})).json()
    for _ in range(3):
        (await service.client.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")).raise_for_status()
    async with service.database.writes.begin() as session:
        await session.execute(update(WebhookEndpoint).values(failing_since=datetime.now(UTC)))
        await session.execute(update(Delivery).values(status=DeliveryStatus.given_up, due_at=None))
    failing = await _webhooks(service)

    assert before == "no endpoint fails or is disabled because it failed, and nothing was given up"
    assert failing == (
        f"endpoints that fail now: {endpoint['id']}; 3 deliveries of the last 5 days were given up: {ADVICE}"
    )


async def test_deliveries_that_were_given_up_long_ago_are_not_told(service: Service) -> None:
    endpoint = (await service.client.post("/v1/webhook-endpoints", json={"url": "https://example.com/"})).json()
    await service.client.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")
    async with service.database.writes.begin() as session:
        await session.execute(update(Delivery).values(status=DeliveryStatus.given_up, due_at=None))
    recent = await _webhooks(service)
    week_ago = _first_id(datetime.now(UTC) - timedelta(days=7))
    async with service.database.writes.begin() as session:
        await session.execute(update(Delivery).values(id=week_ago))
    old = await _webhooks(service)

    assert recent.startswith("1 deliveries of the last 5 days were given up")
    assert "given up" in old
    assert "deliveries of" not in old


def _first_id(at: datetime) -> str:
    """The first UUIDv7 of this time."""
    return UUID(int=(int(at.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62)).hex


async def _webhooks(service: Service) -> str:
    check = (await service.client.get("/readyz")).json()["checks"]["webhooks"]
    assert check["status"] == "ok"
    return str(check["detail"])
