"""The command line."""

import sys

# Modules that libraries import if they are there, and that no process of ours uses: httpx's command line, pydantic 1,
# and a reloader for developers. Python takes one whose entry is None for not installed.
UNUSED = ("httpx._main", "pydantic.v1", "uvicorn.supervisors.watchfilesreload")
for _name in UNUSED:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
# The demo uses rich, but no log does: tracebacks are lines of text there.
_is_kept = sys.modules.setdefault("rich", None) is not None  # type: ignore[arg-type]
import structlog  # noqa: E402, F401

if not _is_kept:
    del sys.modules["rich"]
