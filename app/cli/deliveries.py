"""`soundpost deliveries`: every caller's webhooks on their way, to read and to send again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import EXIT_CODES, FAILED, acting_for, read_task_id, with_services
from app.cli.keys import key_of
from app.cli.output import WIDE, age, console, is_terminal, note, note_more, print_json, print_table
from app.enums import DeliveryStatus
from app.errors import NotFound
from app.observability.redaction import printable

if TYPE_CHECKING:
    from app.models import Delivery
    from app.services import Services

deliveries = typer.Typer(no_args_is_help=True, help="Webhooks on their way to callers.", epilog=EXIT_CODES)

# Deliveries that one statement reads, with their bodies.
PAGE = 50


@deliveries.command("list", epilog=EXIT_CODES)
def list_deliveries(
    status: Annotated[DeliveryStatus | None, typer.Option(help="Only deliveries with this status.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="ID", help="Only deliveries to this endpoint.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Only deliveries about this task.", callback=read_task_id)
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME|ID", help="Only deliveries of this caller.")] = None,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Begin behind this delivery of the list.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List at most this many deliveries.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the deliveries of all callers, newest first."""
    from app.webhooks.schemas import read_delivery

    filters = {"status": status, "endpoint_id": endpoint, "task_id": task}
    given = {name: value for name, value in filters.items() if value is not None}
    found, is_more = with_services(lambda services: _read(services, key, given, after, limit))
    if as_json:
        print_json([read_delivery(each).model_dump(mode="json") for each in found])
    elif is_terminal():
        _print(found)
    else:
        for each in found:
            line = f"{each.id}  {each.status:<9}  {each.event_type:<17}  {each.attempts_made} attempts  {each.url}"
            typer.echo(printable(line))
    if is_more:
        note_more(found[-1].id)


async def _read(
    services: Services, key: str | None, filters: dict[str, str], after: str | None, limit: int
) -> tuple[list[Delivery], bool]:
    """Up to `limit` deliveries, and whether more follow."""
    from app.auth.api_keys import list_keys
    from app.auth.callers import OPERATOR, Caller

    caller = OPERATOR
    found: list[Delivery] = []
    if key is not None:
        async with services.database.reads() as session:
            caller = Caller(key_of(await list_keys(session), key).id, is_admin=False)
    while True:
        count = min(PAGE, limit - len(found)) + 1
        page = await services.webhooks.list_deliveries(caller, filters, after, count)
        found += page[: count - 1]
        if len(page) < count or len(found) == limit:
            return found, len(page) == count
        after = found[-1].id


def _print(found: Sequence[Delivery]) -> None:
    now = datetime.now(UTC)
    if console().width < WIDE:
        rows = ((each.id, each.status, age(each.created_at, now), each.event_type, each.url) for each in found)
        print_table(("DELIVERY", "STATUS", "AGE", "EVENT", "URL"), rows)
        return
    wide = (
        (
            each.id,
            each.status,
            age(each.created_at, now),
            each.event_type,
            each.attempts_made,
            age(each.due_at, now),
            each.url,
        )
        for each in found
    )
    print_table(("DELIVERY", "STATUS", "AGE", "EVENT", "ATTEMPTS", "NEXT", "URL"), wide)


@deliveries.command("resend", epilog=EXIT_CODES)
def resend_deliveries(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids that `soundpost deliveries list` shows.")],
) -> None:
    """Make deliveries due now, whatever their status: the same id and the same bytes are sent again."""

    async def resend(services: Services) -> list[str]:
        unknown = []
        for delivery_id in ids:
            try:
                await _resend(services, delivery_id)
            except NotFound:
                unknown.append(delivery_id)
        return unknown

    unknown = with_services(resend)
    for delivery_id in ids:
        if delivery_id not in unknown:
            typer.echo(f"{delivery_id} is due now.")
    for delivery_id in unknown:
        note(f"No delivery has the id {delivery_id}; `soundpost deliveries list` shows them.")
    if unknown:
        raise typer.Exit(FAILED)


async def _resend(services: Services, delivery_id: str) -> None:
    """Send one again in the name of its caller. Raises NotFound."""
    from app.webhooks.repository import find_delivery

    async with services.database.reads() as session:
        found = await find_delivery(session, delivery_id)
    if found is None:
        raise NotFound
    await services.webhooks.resend(acting_for(found.api_key_id), delivery_id)
