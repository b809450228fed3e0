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
        self.unknown_words = Counter(
            "soundpost_unknown_status_words_total",
            "Reports of the upstream whose status word is in no list, by the word; beyond 50 words `other`.",
            ["word"],
            registry=self.registry,
        )
