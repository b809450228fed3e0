"""Webhooks: the endpoints and how they fare, deliveries with their attempts, and what can be done about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import ValidationError

from app.config import parse_rate
from app.console.mount import PATH
from app.console.rendering import Pages, PagesDep, link_with, span, with_zone
from app.console.repository import names_of_keys
from app.console.session import FormDep, Refused, Visitor, WebhooksVisitor
from app.database.engine import Database
from app.enums import DeliveryStatus
from app.errors import NotFound
from app.models import Delivery, WebhookEndpoint
from app.web.pagination import decode_cursor, decode_time_cursor, encode_cursor
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router
from app.webhooks.repository import latest_attempts
from app.webhooks.schemas import EndpointUpdate, Recovery
from app.webhooks.service import WebhookService

router = Router(prefix=PATH)
LIST = f"{PATH}/webhooks"
WebhooksDep = Annotated[WebhookService, provided(WebhookService)]
# A key has at most 100 endpoints.
ENDPOINTS, DELIVERIES, ATTEMPTS = 100, 25, 200
UNUSABLE = "This cannot be used"
_FILTERS = "status", "endpoint_id", "task_id"


@router.get("/webhooks")
async def show_webhooks(
    request: Request, pages: PagesDep, visitor: WebhooksVisitor, webhooks: WebhooksDep, database: DatabaseDep
) -> Response:
    """The endpoints that the visitor may see, and the latest deliveries that the URL asks for."""
    given = _read_filters(request)
    if set(given) != {name for name in _FILTERS if name in request.query_params}:
        return pages.redirect(LIST + link_with(given))
    after = decode_time_cursor(request, request.query_params.get("endpoints"))
    found = await webhooks.list_endpoints(visitor.caller, after, ENDPOINTS + 1)
    endpoints, last = found[:ENDPOINTS], found[ENDPOINTS - 1 :][:1]
    more = encode_cursor(LIST, last[0].created_at.isoformat(), last[0].id) if len(found) > ENDPOINTS else ""
    deliveries = await _read_deliveries(request, webhooks, visitor, given)
    shown = {**await _explained(database, visitor, endpoints, deliveries["deliveries"]), **deliveries}
    return pages.render(request, "webhooks.html", endpoints=endpoints, more_endpoints=more, given=given, **shown)


@router.get("/webhooks/{endpoint_id}")
async def show_endpoint(
    request: Request,
    pages: PagesDep,
    visitor: WebhooksVisitor,
    webhooks: WebhooksDep,
    database: DatabaseDep,
    endpoint_id: str,
) -> Response:
    """One endpoint with its deliveries."""
    endpoint = await webhooks.get_endpoint(visitor.caller, endpoint_id)
    given = {name: value for name, value in _read_filters(request).items() if name == "status"}
    deliveries = await _read_deliveries(request, webhooks, visitor, {**given, "endpoint_id": endpoint.id})
    shown = {**await _explained(database, visitor, [endpoint], deliveries["deliveries"]), **deliveries}
    rate = parse_rate(endpoint.rate) if endpoint.rate else None
    shown["rate"] = f"{rate.requests:,} attempts in any {span(rate.period)}" if rate else "no limit"
    return pages.render(request, "endpoint.html", endpoint=endpoint, given=given, **shown)


@router.get("/deliveries/{delivery_id}")
async def show_delivery(
    request: Request,
    pages: PagesDep,
    visitor: WebhooksVisitor,
    webhooks: WebhooksDep,
    database: DatabaseDep,
    delivery_id: str,
) -> Response:
    """One delivery with its attempts."""
    delivery = await _find_delivery(webhooks, visitor, delivery_id)
    attempts = await webhooks.list_attempts(visitor.caller, delivery.id, None, ATTEMPTS)
    shown = await _explained(database, visitor, [], [delivery])
    return pages.render(request, "delivery.html", delivery=delivery, attempts=attempts, **shown)


@router.post("/webhooks/{endpoint_id}/test")
async def send_test(
    pages: PagesDep, visitor: WebhooksVisitor, _form: FormDep, webhooks: WebhooksDep, endpoint_id: str
) -> Response:
    """Send a `webhook.test` to an endpoint."""
    owner = visitor.acting_for(await webhooks.get_endpoint(visitor.caller, endpoint_id))
    delivery = await webhooks.send_test(owner, endpoint_id)
    return pages.redirect(f"{PATH}/deliveries/{delivery.id}", "A test is on its way.")


@router.post("/webhooks/{endpoint_id}/recover")
async def recover(
    pages: PagesDep, visitor: WebhooksVisitor, form: FormDep, webhooks: WebhooksDep, endpoint_id: str
) -> Response:
    """Attempt every undelivered delivery of a time range again."""
    owner = visitor.acting_for(await webhooks.get_endpoint(visitor.caller, endpoint_id))
    moments = {name: with_zone(form[name]) for name in ("since", "until") if form.get(name)}
    try:
        wanted = Recovery.model_validate(moments)
    except ValidationError:
        raise Refused(
            422, "This is no range of time", "Say since when, and until when unless it is until now."
        ) from None
    count = await webhooks.recover(owner, endpoint_id, wanted)
    return pages.redirect(f"{LIST}/{endpoint_id}", f"{_counted(count)} due again.")


@router.post("/webhooks/{endpoint_id}/rate")
async def set_rate(
    pages: PagesDep, visitor: WebhooksVisitor, form: FormDep, webhooks: WebhooksDep, endpoint_id: str
) -> Response:
    """Set or remove the rate of an endpoint."""
    return await _change(
        pages, visitor, webhooks, endpoint_id, {"rate": form.get("rate", "").strip() or None}, "The rate is set."
    )


@router.post("/webhooks/{endpoint_id}/headers")
async def replace_headers(
    pages: PagesDep, visitor: WebhooksVisitor, form: FormDep, webhooks: WebhooksDep, endpoint_id: str
) -> Response:
    """Replace the headers of an endpoint by those of the lines."""
    lines = [line.partition(":") for line in form.get("headers", "").splitlines() if line.strip()]
    headers = {name.strip(): value.strip() for name, _, value in lines}
    if len(headers) < len(lines):
        raise Refused(422, UNUSABLE, "Each header may be named once.")
    return await _change(pages, visitor, webhooks, endpoint_id, {"headers": headers}, "The headers are replaced.")


async def _change(
    pages: Pages, visitor: Visitor, webhooks: WebhookService, endpoint_id: str, fields: dict[str, Any], done: str
) -> Response:
    owner = visitor.acting_for(await webhooks.get_endpoint(visitor.caller, endpoint_id))
    try:
        wanted = EndpointUpdate.model_validate(fields)
    except ValidationError as error:
        # Of these fields no message holds what was given.
        why = "; ".join(f"{each['loc'][0]}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors())
        raise Refused(422, UNUSABLE, f"{why}.") from None
    await webhooks.update_endpoint(owner, endpoint_id, wanted)
    return pages.redirect(f"{LIST}/{endpoint_id}", done)


@router.post("/webhooks/{endpoint_id}/{change}")
async def switch(
    pages: PagesDep, visitor: WebhooksVisitor, _form: FormDep, webhooks: WebhooksDep, endpoint_id: str, change: str
) -> Response:
    """Enable or disable an endpoint."""
    if change not in ("enable", "disable"):
        raise NotFound
    owner = visitor.acting_for(await webhooks.get_endpoint(visitor.caller, endpoint_id))
    await webhooks.update_endpoint(owner, endpoint_id, EndpointUpdate(disabled=change == "disable"))
    done = {
        "enable": "The endpoint is enabled. Recover sends what it missed.",
        "disable": "The endpoint is disabled; its pending deliveries are given up.",
    }
    return pages.redirect(f"{LIST}/{endpoint_id}", done[change])


@router.post("/deliveries/{delivery_id}/resend")
async def resend(
    pages: PagesDep, visitor: WebhooksVisitor, _form: FormDep, webhooks: WebhooksDep, delivery_id: str
) -> Response:
    """Attempt a delivery again now."""
    owner = visitor.acting_for(await _find_delivery(webhooks, visitor, delivery_id))
    await webhooks.resend(owner, delivery_id)
    return pages.redirect(f"{PATH}/deliveries/{delivery_id}", "The delivery is due now.")


async def _find_delivery(webhooks: WebhookService, visitor: Visitor, delivery_id: str) -> Delivery:
    found = await webhooks.list_deliveries(visitor.caller, {"id": delivery_id}, None, 1)
    if not found:
        raise NotFound
    return found[0]


async def _read_deliveries(
    request: Request, webhooks: WebhookService, visitor: Visitor, filters: dict[str, str]
) -> dict[str, Any]:
    position = decode_cursor(request, request.query_params.get("cursor"), 1)
    before = position[0] if position else None
    found = await webhooks.list_deliveries(visitor.caller, filters, before, DELIVERIES + 1)
    page = found[:DELIVERIES]
    cursor = encode_cursor(request.url.path, page[-1].id) if len(found) > DELIVERIES else ""
    return {"deliveries": page, "next_cursor": cursor, "is_first": before is None}


async def _explained(
    database: Database, visitor: Visitor, endpoints: Sequence[WebhookEndpoint], deliveries: Sequence[Delivery]
) -> dict[str, Any]:
    """The last attempts of deliveries, and for an admin the names of the keys that rows belong to."""
    async with database.reads() as session:
        latest = await latest_attempts(session, [delivery.id for delivery in deliveries], 1)
        keys = {endpoint.api_key_id for endpoint in endpoints} | {delivery.api_key_id for delivery in deliveries}
        owners = await names_of_keys(session, keys) if visitor.is_admin else {}
        last = {delivery_id: found[-1] for delivery_id, found in latest.items() if found}
        return {"last": last, "owners": owners, "now": await database.now(session)}


def _read_filters(request: Request) -> dict[str, str]:
    """The filters of deliveries in the URL, without those that are empty or that nothing could match."""
    given = {name: request.query_params.get(name, "").strip() for name in _FILTERS}
    if given["status"] not in tuple(DeliveryStatus):
        given["status"] = ""
    return {name: value for name, value in given.items() if value and value.isascii()}


def _counted(count: int) -> str:
    return f"{count:,} deliveries are" if count != 1 else "1 delivery is"
