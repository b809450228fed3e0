"""How commands read times and print rows: tables on a terminal, plain lines elsewhere, JSON where it is asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer

from app.cli.context import REFUSED, fail
from app.observability.redaction import printable

if TYPE_CHECKING:
    from rich.console import Console

# From this width on a table has room for more than the necessary columns.
WIDE = 110
# No column but the last is wider: the first holds ids, the others may hold names.
WIDEST, WIDEST_LATER = 32, 20
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
TIME_HELP = "RFC 3339, in UTC if it has no zone, or a span before now such as 90m, 24h or 7d"


def is_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2))


def note(message: str) -> None:
    """Print a line beside the result, to standard error."""
    typer.echo(printable(message, kept="\n"), err=True)


def note_more(last_id: str) -> None:
    """Say that a list goes on behind this row."""
    note(f"More follow: `--after {last_id}` lists them, a larger `--limit` lists more at once.")


def console() -> Console:
    """The terminal; it follows NO_COLOR and COLUMNS."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, heading: str = "") -> None:
    """
    Print a table that is no wider than the terminal; nothing in a cell can command the terminal.

    Ids stay whole, since they are copied: the last column gives way. Below a heading it
    goes on in further lines, in a list it is cut.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(cell_len(row[index]) for row in (columns, *cells)) for index in range(len(columns) - 1)]
    widths = [min(width, WIDEST_LATER if index else WIDEST) for index, width in enumerate(widths)]
    left = console().width - sum(width + 2 for width in widths)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=False):
        table.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    table.add_column(
        columns[-1], no_wrap=not heading, overflow="fold" if heading else "ellipsis", max_width=max(left, 8)
    )
    for row in cells:
        table.add_row(*map(Text, row))
    if heading:
        typer.echo(f"\n{heading}")
    console().print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other, without those that are empty; long values go on in further lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, ""):
            table.add_row(name, Text(_cell(value)))
    console().print(table)


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago a moment was, or in how long it will be, in one unit: `42s`, `5m`, `3h`, `12d`, `in 20s`."""
    if moment is None:
        return ""
    seconds = (now - moment).total_seconds()
    return f"in {_span(-seconds)}" if seconds < -1 else _span(max(0.0, seconds))


def written(moment: datetime | None, now: datetime) -> str:
    """A moment to the second, and how far away it is."""
    if moment is None:
        return ""
    distance = age(moment, now)
    return f"{moment:%Y-%m-%d %H:%M:%S}Z ({distance if distance.startswith('in ') else f'{distance} ago'})"


def timestamp(moment: datetime | None) -> str | None:
    """A moment as in RFC 3339."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def parse_moment(text: str | None, option: str) -> datetime | None:
    """Read the time that an option was given, or fail."""
    if text is None:
        return None
    try:
        if _SPAN.fullmatch(text):
            return datetime.now(UTC) - _read_span(text)
        read = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        fail(
            f"{option} cannot be read: {text!r} is neither a time such as 2026-01-31T08:00:00Z nor a span such as 24h.",
            REFUSED,
        )
    from app.database.base import to_utc

    return to_utc(read if read.tzinfo else read.replace(tzinfo=UTC))


def parse_span(text: str | None, option: str) -> timedelta | None:
    """Read the span of time, longer than none, that an option was given, or fail."""
    if text is None:
        return None
    if not _SPAN.fullmatch(text) or not _read_span(text):
        fail(f"{option} cannot be read: {text!r} is no span such as 12h or 90d.", REFUSED)
    return _read_span(text)


def _read_span(text: str) -> timedelta:
    return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


def _span(seconds: float) -> str:
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _cell(value: object) -> str:
    return "" if value is None else printable(str(value))
