"""Prometheus metrics: what a process counts and times."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from app.enums import CallbackOutcome, Charge, DeliveryStatus, ErrorCode, ResolvedBy, TaskStatus

# Seconds: a POST takes a part of one, a webhook is tried for days.
STAGE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)
# Seconds: callers may wait for a minute.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100)
STAGES = ("queue", "submit", "upstream", "archive", "delivery")
CALLS = ("submit", "poll", "lyrics", "credits")
CALL_OUTCOMES = ("ok", "pending", "invalid", "rejected", "throttled", "held", "ambiguous", "not_sent", "failed")
GROUPS = ("orders", "callbacks", "submits", "clips", "deliveries")
CLAIMED = ("submit", "poll", "archive", "deliver", "periodic")
FILES = ("audio", "cover")
ARCHIVE_OUTCOMES = ("stored", "failed", "given_up")
_FINAL = frozenset({TaskStatus.succeeded, TaskStatus.failed, TaskStatus.canceled})
# Codes, or words, of the upstream that are told apart, so that nobody can fill the metrics with inventions.
MAX_TOLD_APART = 50
OTHER = "other"


class Metrics:
    """
    The metrics of one process, in a registry of their own: several applications in a process do not share them.

    What has few label values is there from the start, with zero: an increase from nothing is none to Prometheus.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if self._folder is None:
            # Those of one of several processes would be told as if they were those of all.
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
        self._define_tasks()
        self._define_upstream()
        self._define_files_and_webhooks()
        self._define_database()
        self.requests = RequestMetrics(self.registry)

    def collect(self) -> Iterable[Metric]:
        """What a scrape shows: of this process, or of all server processes that count together."""
        if self._folder is None:
            return self.registry.collect()
        collected: Iterable[Metric] = MultiProcessCollector(None, self._folder).collect()  # type: ignore[no-untyped-call]
        return collected

    def _define_tasks(self) -> None:
        self.created = self._counter("soundpost_tasks_created_total", "Tasks that callers have ordered.")
        transitions = self._counter(
            "soundpost_task_transitions_total",
            "Transitions of tasks by the state that they led to, and by what the end became known through.",
            "status",
            "resolved_by",
        )
        self.transitions = {
            (status, by): transitions.labels(status.value, by.value if by else "")
            for status in TaskStatus
            for by in (None, *(ResolvedBy if status in _FINAL else ()))
        }
        failures = self._counter("soundpost_task_failures_total", "Tasks that failed, by `error.code`.", "code")
        self.failures = {code: failures.labels(code.value) for code in ErrorCode}
        charges = self._counter(
            "soundpost_task_charges_total",
            "Tasks that the upstream charged, and those of them that it gave back.",
            "charge",
        )
        self.charges = {charge: charges.labels(charge.value) for charge in (Charge.charged, Charge.refunded)}
        durations = self._histogram(
            "soundpost_task_duration_seconds", "From the order of a task to its end.", STAGE_BUCKETS, "status"
        )
        self.durations = {status: durations.labels(status.value) for status in sorted(_FINAL)}
        stages = self._histogram(
            "soundpost_stage_duration_seconds",
            "Parts of a task's way: queue (order to POST), submit (the POST), upstream (POST to result), archive"
            " (result to stored audio), delivery (event to 2xx).",
            STAGE_BUCKETS,
            "stage",
        )
        self.stages = {stage: stages.labels(stage) for stage in STAGES}

    def _define_upstream(self) -> None:
        calls = self._counter(
            "soundpost_upstream_calls_total", "Calls to the upstream, by kind and outcome.", "kind", "outcome"
        )
        self.calls = {(kind, outcome): calls.labels(kind, outcome) for kind in CALLS for outcome in CALL_OUTCOMES}
        words = self._counter(
            "soundpost_unknown_status_words_total",
            "Reports of the upstream whose status word is in no list, by the word; beyond 50 words `other`.",
            "word",
        )
        codes = self._counter(
            "soundpost_unknown_codes_total",
            "Answers of the upstream whose code is in no list, by the code; beyond 50 codes `other`.",
            "code",
        )
        self.unknown_words, self.unknown_codes = Inventions(words), Inventions(codes)
        callbacks = self._counter(
            "soundpost_callbacks_total",
            "Callbacks by outcome: applied, stale, mismatch, unreadable; forged and unsigned ones are not stored.",
            "outcome",
        )
        self.callbacks = {outcome: callbacks.labels(outcome) for outcome in (*CallbackOutcome, "forged", "unsigned")}

    def _define_files_and_webhooks(self) -> None:
        archived = self._counter(
            "soundpost_archive_attempts_total",
            "Attempts to store the upstream's files, by file and outcome; `given_up` is counted beside `failed`.",
            "file",
            "outcome",
        )
        self.archived = {
            (file, outcome): archived.labels(file, outcome) for file in FILES for outcome in ARCHIVE_OUTCOMES
        }
        stored = self._counter("soundpost_archived_bytes_total", "Bytes of the files that were stored.", "file")
        self.archived_bytes = {file: stored.labels(file) for file in FILES}
        attempts = self._counter(
            "soundpost_delivery_attempts_total",
            "Attempts at webhooks by what the delivery is after them: delivered, pending (tried again), given_up.",
            "outcome",
        )
        self.deliveries = {status: attempts.labels(status.value) for status in DeliveryStatus}

    def _define_database(self) -> None:
        lost = self._counter(
            "soundpost_leases_lost_total",
            "Results that were dropped because the lease had ended and another worker had the row, by kind of work.",
            "kind",
        )
        self.leases_lost = {kind: lost.labels(kind) for kind in CLAIMED}
        self.commits = self._counter("soundpost_database_commits_total", "Committed transactions that could write.")
        batches = self._histogram(
            "soundpost_commit_batch_size", "Items that shared one commit, by what they were.", BATCH_BUCKETS, "group"
        )
        self.batches = {group: batches.labels(group) for group in GROUPS}
        self.connections = Gauge(
            "soundpost_database_connections",
            "Connections to the database that are in use, by pool.",
            ["pool"],
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self.max_connections = Gauge(
            "soundpost_database_connections_max",
            "Connections that a pool has at most, by pool.",
            ["pool"],
            registry=self.registry,
            multiprocess_mode="sum",
        )

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Collection[float], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, buckets=tuple(buckets), registry=self.registry)


class RequestMetrics:
    """Counts and times requests by the template of their route, so that no path makes a series of its own."""

    _METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "soundpost_http_requests_total",
            "Requests by method, route and status; `none` where no route matches, or no response was sent.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "soundpost_http_request_duration_seconds",
            "From the head of a request to the end of its response, by route; callers may ask to wait for a minute.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        # To look a child up by its labels takes longer than to count.
        self._children: dict[tuple[str, str, int | None], tuple[Counter, Histogram]] = {}

    def observe(self, scope: Mapping[str, Any], status: int | None, seconds: float) -> None:
        """Count a request that has ended."""
        route = scope.get("route")
        key = scope["method"], "none" if route is None else route.path, status
        counter, duration = self._children.get(key) or self._add(key)
        counter.inc()
        duration.observe(seconds)

    def _add(self, key: tuple[str, str, int | None]) -> tuple[Counter, Histogram]:
        method, route, status = key
        known = method if method in self._METHODS else OTHER
        children = self._requests.labels(known, route, status or "none"), self._durations.labels(route)
        if known is not OTHER:
            self._children[key] = children
        return children


class Inventions:
    """Counts by a label that somebody else makes up: the first MAX_TOLD_APART values, and `other`."""

    def __init__(self, counter: Counter) -> None:
        self._counter, self._known = counter, set[str]()

    def count(self, value: str) -> bool:
        """Count a value; return whether it is told apart since now."""
        is_new = value not in self._known and len(self._known) < MAX_TOLD_APART
        if is_new:
            self._known.add(value)
        self._counter.labels(value if value in self._known else OTHER).inc()
        return is_new
