"""One attempt of a worker: one wide line of the log and one span, with the same fields, however it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from app.observability.tracing import TraceContext, describe, span

log = structlog.get_logger()

INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Attempt:
    """What is known of an attempt. `failure` is a kind of error, or None; `is_alarming`: somebody should look at it."""

    line: dict[str, Any]
    failure: str | None = INTERRUPTED
    is_alarming: bool = False


@contextmanager
def attempt(
    name: str, trace_context: TraceContext | None, fields: Mapping[str, Any], event: str | None = None
) -> Iterator[Attempt]:
    """
    Log and trace what is done in the block, which adds to the fields: in a line `event`, by default the span's name.

    What is cut off, as by the stop of the process, is a line too.
    """
    began, made = time.monotonic(), Attempt({**fields})
    with span(name, trace_context) as traced:
        try:
            yield made
        finally:
            made.line.setdefault("duration_ms", round((time.monotonic() - began) * 1000))
            write = log.warning if made.is_alarming else log.info
            write(event or name, **made.line)
            describe(traced, made.line, made.failure)
