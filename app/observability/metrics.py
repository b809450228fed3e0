"""What is counted for those who run the service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Metrics:
    """This process's counters; several applications in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.callbacks = Counter(
            "soundpost_callbacks_total",
            "Callbacks by what they did: applied, stale, mismatch, unreadable; forged and unsigned ones are not kept.",
            ["outcome"],
            registry=self.registry,
        )
