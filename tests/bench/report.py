"""Figures with their spread and target, on the terminal and in RESULTS.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """\
# Results of `make bench`

Each part is one run of one row on one kind of database; a run replaces the parts that it measured again. A value is
the median of its rounds or samples, with the least and the most in brackets. Variants take turns in every round, so
ratios hold on a busy machine too; absolute numbers do not.
"""
COLUMNS = ("what", "median (min–max)", "target", "met", "how")


@dataclass(frozen=True)
class Figure:
    """One thing that was measured: a value for each round or sample, and what it must be at most or at least."""

    what: str
    values: Sequence[float]
    unit: str
    how: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def target(self) -> str:
        """The bound in words, or nothing."""
        if self.at_most is not None:
            return f"≤ {_short(self.at_most)} {self.unit}"
        return f"≥ {_short(self.at_least)} {self.unit}" if self.at_least is not None else ""

    @property
    def met(self) -> str:
        """Whether the median keeps the bound."""
        if not self.target or not self.values:
            return ""
        middle = median(self.values)
        is_met = middle <= self.at_most if self.at_most is not None else middle >= (self.at_least or 0)
        return "yes" if is_met else "**no**"

    @property
    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        value = "not measured"
        if self.values:
            spread = f" ({_short(min(self.values))}–{_short(max(self.values))})" if len(self.values) > 1 else ""
            value = f"{_short(median(self.values))}{spread} {self.unit}"
        return self.what, value, self.target, self.met, self.how


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """How many times as much ours is, round by round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True) if other]


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print a part as soon as it is measured."""
    print(f"\n{title}")
    cells = [figure.cells for figure in figures]
    widths = [max((len(line[column]) for line in cells), default=0) for column in range(len(COLUMNS))]
    for line in cells:
        print(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True
        )


def write(title: str, machine: str, figures: Sequence[Figure], file: Path = RESULTS) -> None:
    """Put a part into the results, in the place of an earlier one with its title."""
    text = file.read_text() if file.exists() else HEAD
    head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    by_title = {part.splitlines()[0][3:]: part.rstrip() for part in parts}
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(figure.cells for figure in figures)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    by_title[title] = f"## {title}\n\n{machine}\n\n{table}"
    file.write_text("\n\n".join([head.rstrip(), *(part for _, part in sorted(by_title.items()))]) + "\n")


def _short(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:,.{digits}f}"
