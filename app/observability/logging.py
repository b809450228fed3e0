"""Logging: one line per attempt, as JSON or for a console, on standard error, without secrets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Hashable, MutableMapping
from datetime import timedelta
from typing import Any

import structlog

from app.config import Settings
from app.observability.redaction import printable, redact_log_value
from app.observability.tracing import name_span

# In characters as written: a line with a few such values stays below 8 kB.
MAX_VALUE_LENGTH = 3_000
# The most characters that JSON makes of one: two escapes, of a surrogate each.
MAX_ESCAPED = 12
# A warning or error that repeats within this time is counted instead of written.
FOLD_FOR = timedelta(minutes=1)
# In these a repetition may differ from the first.
_CIRCUMSTANCES = frozenset(
    {"loop", "delay", "duration_ms", "request_id", "caller", "pid", "upstream_message", "trace_id", "span_id"}
)
_MAX_KEPT = 1_000


def configure_logging(settings: Settings) -> None:
    """Send the lines of every logger, those of the libraries too, through one renderer."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        name_span,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level.upper())),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(FoldRepeats())
    rendering = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(settings)]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # Our pool of SQLAlchemy logs under its own module.
    for name in ("httpx", "httpcore", "sqlalchemy", "app.database.turns", "aiosqlite", "asyncio", "alembic", "urllib3"):
        # Below warnings they repeat URLs and statements, which our own lines summarise.
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its errors and warnings about a collector that is away are one line of ours.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # Its warnings are about what follows an error, which it raises as well; each holds an address, so none is folded.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


class FoldRepeats(logging.Filter):
    """Lets a warning or error through once within this time; the next says in `repeated` how many were not written."""

    def __init__(self, within: timedelta = FOLD_FOR) -> None:
        super().__init__()
        self._within = within.total_seconds()
        self._written_at: dict[Hashable, float] = {}
        self._unwritten: dict[Hashable, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write this record."""
        if record.levelno not in (logging.WARNING, logging.ERROR):
            return True
        fields = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        same = {name: str(value) for name, value in fields.items() if name not in {*_CIRCUMSTANCES, "timestamp"}}
        key, now = frozenset(same.items()), time.monotonic()
        if now < self._written_at.get(key, -self._within) + self._within:
            self._unwritten[key] = self._unwritten.get(key, 0) + 1
            return False
        if len(self._written_at) >= _MAX_KEPT:
            self._written_at.clear()
            self._unwritten.clear()
        self._written_at[key] = now
        repeated = self._unwritten.pop(key, 0)
        if repeated and isinstance(record.msg, dict):
            record.msg["repeated"] = repeated
        return True


def _renderers(settings: Settings) -> list[Any]:
    chosen = settings.log_format or ("console" if sys.stderr.isatty() else "json")
    if chosen == "console":
        return [_escape_controls, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.JSONRenderer()]


def _escape_controls(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A terminal obeys what a prompt or the upstream's message may hold: it clears the screen or rewrites a line.
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = printable(value, kept="\n" if name in ("event", "exception") else "")
    return entry


def _redact_secrets(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # URLs with secrets can reach the log through the message of a library's exception.
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = _shortened(redact_log_value(value))
    return entry


def _shortened(text: str) -> str:
    """The end of a long text: the end of a traceback holds the exception."""
    if len(text) * MAX_ESCAPED <= MAX_VALUE_LENGTH:
        return text
    text = text[-MAX_VALUE_LENGTH:]
    while len(json.dumps(text)) > MAX_VALUE_LENGTH:
        text = text[len(text) // 4 + 1 :]
    return text
