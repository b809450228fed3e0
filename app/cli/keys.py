"""`soundpost keys`: the API keys of callers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import EXIT_CODES, REFUSED, fail, with_services
from app.cli.output import WIDE, age, console, is_terminal, parse_span, print_json, print_table, timestamp
from app.enums import Scope

if TYPE_CHECKING:
    from app.auth.api_keys import KeyTerms
    from app.database.engine import Session
    from app.enums import Window
    from app.models import ApiKey, Budget
    from app.services import Services

# Of credits, as they are stored.
THOUSANDTHS = 1000

keys = typer.Typer(no_args_is_help=True, help="API keys of callers.", epilog=EXIT_CODES)


Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What it may do: submit, read, webhooks, admin; a comma list, or repeated.",
    ),
]
Weight = Annotated[
    int | None, typer.Option(min=1, max=100, help="Its share of the queue beside those of other keys; 1 by default.")
]
GivenBudget = Annotated[
    str | None, typer.Option("--budget", metavar="N/day|N/month", help="The credits that it may spend in that time.")
]
ExpiresIn = Annotated[
    str | None, typer.Option(metavar="SPAN", help="When it stops working: a span from now such as 12h or 90d.")
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The id that `soundpost keys list` shows.")]


@keys.command("create", epilog=EXIT_CODES)
def create_key(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Whose key it is: 1 to 100 characters, shown by `soundpost keys list`."),
    ],
    admin: Annotated[bool, typer.Option("--admin", help="Add the scope admin: read what every caller has.")] = False,
    scope: Scopes = None,
    weight: Weight = None,
    budget: GivenBudget = None,
    expires_in: ExpiresIn = None,
) -> None:
    """Create an API key and print it. It is stored as a hash, so it cannot be shown again."""
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        fail("NAME must be 1 to 100 printable characters, without white space around them.")

    from app.auth import api_keys

    change = _read_change(scope, weight, budget, expires_in, adds_admin=admin)

    async def create(services: Services) -> tuple[str | None, str | None]:
        async with services.database.transaction() as (session, now):
            if same := await api_keys.find_active(session, name):
                return None, same.id
            revoked = await api_keys.find_revoked(session, name)
            key = await api_keys.create_key(session, name, now, **change.terms(now))
            if made := await api_keys.find_active(session, name):
                await change.apply_budget(session, made.id, now)
            return key, revoked.id if revoked else None

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


@keys.command("set", epilog=EXIT_CODES)
def set_key(
    key_id: KeyId,
    admin: Annotated[bool, typer.Option("--admin", help="Add the scope admin; --scope takes it away again.")] = False,
    scope: Scopes = None,
    weight: Weight = None,
    budget: GivenBudget = None,
    no_budget: Annotated[bool, typer.Option("--no-budget", help="Let it spend without a limit.")] = False,
    expires_in: ExpiresIn = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="Let it work until it is revoked.")] = False,
) -> None:
    """Change what a key may do, spend and until when; the rest stays as it is. It counts at once, on every replica."""
    if budget is not None and no_budget:
        fail("Give --budget or --no-budget, not both.", REFUSED)
    if expires_in is not None and no_expiry:
        fail("Give --expires-in or --no-expiry, not both.", REFUSED)
    if not any((admin, scope, weight, budget, no_budget, expires_in, no_expiry)):
        fail("Give what is to change: --scope, --admin, --weight, --budget, --expires-in, or --help for all.", REFUSED)

    from app.auth import api_keys

    change = _read_change(scope, weight, budget, expires_in, adds_admin=admin)
    change = replace(change, changes_budget=change.changes_budget or no_budget)
    if no_expiry:
        change.given["expires_at"] = None

    async def work(services: Services) -> bool:
        async with services.database.transaction() as (session, now):
            if await api_keys.change_key(session, key_id, now, **change.terms(now)) is None:
                return False
            await change.apply_budget(session, key_id, now)
            return True

    if not with_services(work):
        fail("No key has this id; `soundpost keys list` shows them.")
    typer.echo("Changed.")


@dataclass(frozen=True)
class _Change:
    """What options say about a key; `limit` is in thousandths of credits, and None takes the budget away."""

    given: KeyTerms
    works_for: timedelta | None
    changes_budget: bool
    limit: int | None
    window: Window | None

    def terms(self, now: datetime) -> KeyTerms:
        """The columns of the key's row that are given."""
        return self.given if self.works_for is None else {**self.given, "expires_at": now + self.works_for}

    async def apply_budget(self, session: Session, key_id: str, now: datetime) -> None:
        """Give the key the budget, if one is given."""
        if not self.changes_budget:
            return
        from app.auth.audit import OPERATOR, record
        from app.budgets.ledger import set_budget

        await set_budget(session, key_id, self.limit, self.window, now)
        limit = None if self.limit is None else self.limit / THOUSANDTHS
        record(session, now, OPERATOR, "key.budget_changed", key_id, limit=limit, window=self.window)


def _read_change(
    scope: list[str] | None, weight: int | None, budget: str | None, expires_in: str | None, *, adds_admin: bool
) -> _Change:
    """Read the options, or fail with a sentence for the first that cannot be."""
    given: KeyTerms = {} if weight is None else {"weight": weight}
    if scope is not None:
        wanted = {word.strip() for words in scope for word in words.split(",")} - {""}
        if wanted - {*Scope} or not wanted:
            fail(f"--scope takes {', '.join(Scope)}, separated by commas, and not {','.join(scope)!r}.", REFUSED)
        plain = [each for each in Scope if each in wanted and each is not Scope.admin]
        given |= {"scopes": ",".join(plain), "is_admin": Scope.admin in wanted}
    if adds_admin:
        given |= {"is_admin": True}
    limit, window = (None, None) if budget is None else _read_budget(budget)
    return _Change(given, parse_span(expires_in, "--expires-in"), budget is not None, limit, window)


def _read_budget(text: str) -> tuple[int, Window]:
    from app.budgets.limits import parse_budget

    try:
        return parse_budget(text)
    except ValueError as error:
        fail(f"--budget {error}.", REFUSED)


@keys.command("list", epilog=EXIT_CODES)
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the API keys by id and name, oldest first."""
    from app.auth import api_keys

    async def read(services: Services) -> tuple[list[dict[str, Any]], datetime]:
        async with services.database.reads() as session:
            budgets = await api_keys.find_budgets(session)
            found = [_as_json(key, budgets.get(key.id)) for key in await api_keys.list_keys(session)]
            return found, await services.database.now(session)

    found, now = with_services(read)
    if as_json:
        print_json([{**key, **{name: timestamp(key[name]) for name in _TIMES}} for key in found])
    elif not is_terminal():
        for key in found:
            typer.echo(f"{key['id']}  {key['name']}{' (admin)' if key['admin'] else ''}  {_state(key, now)}")
    elif console().width < WIDE:
        lines = [(key["id"], key["name"], _may(key), _state(key, now)) for key in found]
        print_table(("ID", "NAME", "MAY", "STATE"), lines)
    else:
        print_table(("ID", "NAME", "MAY", "WEIGHT", "BUDGET", "USED", "STATE"), [_row(key, now) for key in found])


_TIMES = "created_at", "expires_at", "last_used_at", "revoked_at"


def _as_json(key: ApiKey, budget: Budget | None) -> dict[str, Any]:
    from app.auth.api_keys import terms_of

    limit = budget.credit_limit if budget else None
    return {
        "id": key.id,
        "name": key.name,
        "admin": key.is_admin,
        **terms_of(key),
        "budget": {"limit": limit / THOUSANDTHS, "window": budget.window} if budget and limit is not None else None,
        "configured": key.is_configured,
        **{name: getattr(key, name) for name in _TIMES},
    }


def _row(key: dict[str, Any], now: datetime) -> tuple[object, ...]:
    budget = f"{key['budget']['limit']:.15g}/{key['budget']['window']}" if key["budget"] else ""
    used = age(key["last_used_at"], now)
    return key["id"], key["name"], _may(key), key["weight"], budget, used and f"{used} ago", _state(key, now)


def _may(key: dict[str, Any]) -> str:
    # A narrow column is cut: what matters most comes first.
    return ",".join(sorted(key["scopes"], key=Scope.admin.__ne__))


def _state(key: dict[str, Any], now: datetime) -> str:
    if key["revoked_at"]:
        return f"revoked {key['revoked_at'].isoformat()}"
    if key["expires_at"] is None:
        return "active"
    return f"{'expired' if key['expires_at'] <= now else 'active until'} {key['expires_at'].isoformat()}"


@keys.command("rotate", epilog=EXIT_CODES)
def rotate_key(
    key_id: KeyId,
    now: Annotated[bool, typer.Option("--now", help="Refuse the old key from now on, instead of in 24 hours.")] = False,
) -> None:
    """Give a caller a new key and print it. Tasks, endpoints and webhook secrets stay the caller's."""
    from app.auth import api_keys

    async def rotate(services: Services) -> tuple[str | None, str | None]:
        overlap = timedelta() if now else api_keys.OVERLAP
        async with services.database.transaction() as (session, moment):
            remark = await api_keys.remark_on_rotation(session, key_id, moment)
            return await api_keys.rotate_key(session, key_id, moment, overlap), remark

    key, remark = with_services(rotate)
    if key is None:
        fail("No key has this id; `soundpost keys list` shows them.")
    if remark:
        typer.echo(remark, err=True)
    typer.echo(key)


@keys.command("revoke", epilog=EXIT_CODES)
def revoke_key(
    key_id: KeyId,
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

    `is_active`: one that is revoked or expired does not count.
    """
    from app.auth.api_keys import refusal_of

    now = datetime.now(UTC)
    named = [key for key in keys if name_or_id in (key.id, key.name)]
    active = [key for key in named if refusal_of(key, now) is None]
    if not named:
        fail(f"No key has the name or id {name_or_id}; `soundpost keys list` shows them.", REFUSED)
    if is_active and not active:
        fail(refusal_of(named[-1], now) or "", REFUSED)
    return (active or named)[-1]
