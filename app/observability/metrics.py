"""Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Metrics:
    """The metrics of one process, in a registry of their own: several applications in a process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.callbacks = Counter(
            "soundpost_callbacks_total",
            "Callbacks by outcome: applied, stale, mismatch, unreadable; forged and unsigned ones are not stored.",
            ["outcome"],
            registry=self.registry,
        )
