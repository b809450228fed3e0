"""The faults that can be asked for, as a table, and how a prompt or an option asks for them."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.sandbox.fault_table import FAULTS

Chosen = Mapping[str, float | None]
"""The faults of one task and their values; None means that the fault never ends by itself."""

_TAG = re.compile(r"\[fault:([^\]]*)\]", re.IGNORECASE)
_TERM = re.compile(r"(?P<name>[a-z0-9-]+)(=(?P<value>\d+(\.\d+)?))?(:(?P<chance>[01]?\.?\d+))?")


class FaultRefused(ValueError):
    """A fault was asked for that does not exist, or in a way that cannot be read."""


@dataclass(frozen=True)
class Term:
    """One fault as asked for: `name`, `name=value`, `name:probability` or `name=value:probability`."""

    name: str
    value: float | None
    chance: float


def parse_terms(text: str) -> tuple[Term, ...]:
    """Read a comma list of faults; raise FaultRefused for what is not in the table."""
    return tuple(_parse_term(term.strip().lower()) for term in text.split(",") if term.strip())


def terms_in_prompt(prompt: str) -> tuple[Term, ...] | None:
    """The faults that a prompt's tags ask for, or None if it has no tag."""
    tags = _TAG.findall(prompt)
    return parse_terms(",".join(tags)) if tags else None


def without_tags(prompt: str) -> str:
    """The prompt as it sounds."""
    return " ".join(_TAG.sub(" ", prompt).split())


def draw(terms: tuple[Term, ...], rng: random.Random) -> Chosen:
    """Decide which of these faults one submit meets."""
    return {term.name: term.value for term in terms if term.chance >= 1 or rng.random() < term.chance}


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    fault = FAULTS.get(match["name"]) if match else None
    if match is None or fault is None:
        raise FaultRefused(f"unknown fault {text!r}; known are: {', '.join(FAULTS)}")
    if match["value"] is not None and fault.value is None:
        raise FaultRefused(f"fault {match['name']!r} takes no value")
    chance = float(match["chance"] or 1)
    if chance > 1:
        raise FaultRefused(f"the probability of fault {match['name']!r} is above 1")
    return Term(match["name"], float(match["value"]) if match["value"] else fault.default, chance)
