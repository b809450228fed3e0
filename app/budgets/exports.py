"""Tables as CSV (RFC 4180): a line of names, then one for each row, as many as there are."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence

from pydantic import BaseModel

CSV = "text/csv"


async def csv_lines(names: Sequence[str], pages: AsyncIterator[Iterable[BaseModel]]) -> AsyncIterator[str]:
    """
    The lines of a table with these columns, page by page; the first come with the names.

    Cells are numbers, ids and days: there is none that a spreadsheet would take for a formula.
    """
    head = _lines([names])
    async for page in pages:
        yield head + _lines([getattr(row, name) for name in names] for row in page)
        head = ""


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
