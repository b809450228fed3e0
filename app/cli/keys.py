"""`soundpost keys`: the API keys of callers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import EXIT_CODES, REFUSED, fail, with_services
from app.cli.output import is_terminal, print_json, print_table

if TYPE_CHECKING:
    from app.models import ApiKey
    from app.services import Services

keys = typer.Typer(no_args_is_help=True, help="API keys of callers.", epilog=EXIT_CODES)


@keys.command("create", epilog=EXIT_CODES)
def create_key(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Whose key it is: 1 to 100 characters, shown by `soundpost keys list`."),
    ],
    admin: Annotated[bool, typer.Option("--admin", help="Let the key read every caller's tasks.")] = False,
) -> None:
    """Create an API key and print it. It is stored as a hash, so it cannot be shown again."""
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        fail("NAME must be 1 to 100 printable characters, without white space around them.")

    from app.auth import api_keys

    async def create(services: Services) -> tuple[str | None, str | None]:
        async with services.database.transaction() as (session, now):
            if same := await api_keys.find_active(session, name):
                return None, same.id
            revoked = await api_keys.find_revoked(session, name)
            return await api_keys.create_key(session, name, now, is_admin=admin), revoked.id if revoked else None

    made, same = with_services(create)
    if made is None:
        fail(
            f"{name} has a key already. `soundpost keys rotate {same}` gives the same caller a new one; for another "
            "caller choose another NAME."
        )
    if same:
        typer.echo(
            f"This is another caller than the revoked one of this name, whose tasks and endpoints it cannot see: "
            f"`soundpost keys rotate {same}` would give that one a new key.",
            err=True,
        )
    typer.echo(made)


@keys.command("list", epilog=EXIT_CODES)
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the API keys by id and name, oldest first."""

    from app.auth import api_keys

    async def read(services: Services) -> list[dict[str, Any]]:
        async with services.database.reads() as session:
            return [
                {
                    "id": key.id,
                    "name": key.name,
                    "admin": key.is_admin,
                    "configured": key.is_configured,
                    "created_at": key.created_at.isoformat(),
                    "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                }
                for key in await api_keys.list_keys(session)
            ]

    found = with_services(read)
    if as_json:
        print_json(found)
        return
    lines = [(key["id"], key["name"], "admin" if key["admin"] else "", _state(key)) for key in found]
    if is_terminal():
        print_table(("ID", "NAME", "MAY", "STATE"), lines)
        return
    for key_id, name, admin, state in lines:
        typer.echo(f"{key_id}  {name}{f' ({admin})' if admin else ''}  {state}")


def _state(key: dict[str, Any]) -> str:
    return f"revoked {key['revoked_at']}" if key["revoked_at"] else "active"


@keys.command("rotate", epilog=EXIT_CODES)
def rotate_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `soundpost keys list` shows.")],
    now: Annotated[bool, typer.Option("--now", help="Refuse the old key from now on, instead of in 24 hours.")] = False,
) -> None:
    """Give a caller a new key and print it. Tasks, endpoints and webhook secrets stay the caller's."""
    from app.auth import api_keys

    async def rotate(services: Services) -> tuple[str | None, bool]:
        overlap = timedelta() if now else api_keys.OVERLAP
        async with services.database.transaction() as (session, moment):
            was_revoked = await api_keys.is_revoked(session, key_id)
            return await api_keys.rotate_key(session, key_id, moment, overlap), was_revoked

    key, was_revoked = with_services(rotate)
    if key is None:
        fail("No key has this id; `soundpost keys list` shows them.")
    if was_revoked:
        typer.echo(
            "This caller's key was revoked: with the new one it gets in again, and the old one stays refused.", err=True
        )
    typer.echo(key)


@keys.command("revoke", epilog=EXIT_CODES)
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `soundpost keys list` shows.")],
) -> None:
    """Revoke an API key: from now on, every replica refuses it."""

    from app.auth import api_keys

    async def revoke(services: Services) -> bool:
        async with services.database.transaction() as (session, now):
            return await api_keys.revoke_key(session, key_id, now)

    if not with_services(revoke):
        fail("No active key has this id; `soundpost keys list` shows them.")
    typer.echo("Revoked.")


def key_of(keys: Sequence[ApiKey], name_or_id: str, *, is_active: bool = False) -> ApiKey:
    """
    The caller with this id or name, or fail; of several with this name the latest active one.

    `is_active`: a revoked one does not count.
    """
    named = [key for key in keys if name_or_id in (key.id, key.name)]
    active = [key for key in named if key.revoked_at is None]
    if not named:
        fail(f"No key has the name or id {name_or_id}; `soundpost keys list` shows them.", REFUSED)
    if is_active and not active:
        fail(f"The key of {name_or_id} is revoked; `soundpost keys rotate {named[-1].id}` gives a new one.", REFUSED)
    return (active or named)[-1]
