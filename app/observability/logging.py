"""One wide line per attempt, on standard error, in which no secret has a place."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from app.config import Settings

# As it is written, so that a line of several stays below 8 kB.
MAX_VALUE_LENGTH = 3_000
# A URL of ours may reach a log by way of a library's error; what makes it secret must not.
SECRET_PARTS = re.compile(
    r"(/callbacks/[^/\s]+/)[^/?\s\"']+|((?:signature|key|token)=)[^&\s\"']+|((?:Bearer|whsec_)\s?)\S+", re.I
)


def configure_logging(settings: Settings) -> None:
    """Send every logger's lines, the libraries' too, through one renderer."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _blot_out,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level.upper())),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=_renderer(settings)))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("httpx", "httpcore", "sqlalchemy", "aiosqlite", "asyncio", "alembic"):
        # What they say below a warning repeats URLs and statements; we say it better.
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderer(settings: Settings) -> Any:
    chosen = settings.log_format or ("console" if sys.stderr.isatty() else "json")
    if chosen == "console":
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer()


def _blot_out(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = _shortened(SECRET_PARTS.sub(_kept_part, value))
    return entry


def _kept_part(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part) + "***"


def _shortened(text: str) -> str:
    """The end of a long text: of a traceback, it is what tells."""
    text = text[-MAX_VALUE_LENGTH:]
    while len(json.dumps(text)) > MAX_VALUE_LENGTH:
        text = text[len(text) // 4 + 1 :]
    return text
