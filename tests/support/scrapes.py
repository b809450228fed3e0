"""What Prometheus would read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape."""

    text: str
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of a series, None if it does not exist."""
        return self.samples.get((name, frozenset(labels.items())))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with this name and these labels."""
        wanted = labels.items()
        return sum(
            value for (each, found), value in self.samples.items() if each == name and wanted <= dict(found).items()
        )

    @property
    def names(self) -> set[str]:
        """The names of all series."""
        return {name for name, _ in self.samples}


async def scrape(client: httpx.AsyncClient) -> Scrape:
    """Read the metrics of a server."""
    answer = (await client.get("/metrics")).raise_for_status()
    return parsed(answer.text)


def parsed(text: str) -> Scrape:
    """The samples of Prometheus' text format."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return Scrape(text, {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found})
