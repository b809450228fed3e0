"""Reading what the upstream writes loosely: text, numbers, ids, URLs and headers of any type."""

import json
import math
import re
from collections.abc import Mapping
from itertools import islice

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_URL = re.compile("https?://[^\\s/?#\x00-\x1f\x7f\ud800-\udfff][^\\s\x00-\x1f\x7f\ud800-\udfff]*", re.IGNORECASE)
_URL_LENGTH = 4096
_MAX_INTEGER = 2**31 - 1
# Far beyond what they send; a body of nothing but keys would hold up everybody else.
_MAX_FIELDS = 1000


def read_json(body: bytes | str) -> object:
    """
    Return what the body says, or None when it is no JSON.

    Broken UTF-8, a byte order mark, NaN and lone surrogates are put up with: one bad
    character in a title must not cost a paid sound.
    """
    try:
        text = body.decode("utf-8-sig", "replace") if isinstance(body, bytes) else body
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def unpacked(value: object) -> object:
    """Return the value, read once more where it is JSON written as text."""
    return read_json(value) if isinstance(value, str) else value


def fields(value: object) -> dict[str, object]:
    """
    Return the object's fields under names in lower case without underscores.

    So `task_id` and `taskId` are one name; where both stand, the one that says something counts.
    """
    named: dict[str, object] = {}
    if isinstance(value, dict):
        for key, item in islice(value.items(), _MAX_FIELDS):
            name = key.replace("_", "").lower()
            if named.get(name) in (None, ""):
                named[name] = item
    return named


def read_text(value: object, limit: int) -> str | None:
    """Return text that any database takes, or None when there is none."""
    if not isinstance(value, str):
        return None
    return _NOT_STORABLE.sub("", value).strip()[:limit] or None


def read_id(value: object) -> str | None:
    """Return an id of the upstream's, which may be a number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        value = str(value)
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def read_integer(value: object) -> int | None:
    """Return a number that fits a column: 405, "405" and 405.0, but not true."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) <= _MAX_INTEGER else None


def read_number(value: object) -> float | None:
    """Return a finite number, also when written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_url(value: object) -> str | None:
    """Return an http(s) URL. Anything else is no URL to us, and half a URL leads nowhere."""
    if not isinstance(value, str):
        return None
    url = value.strip()
    return url if len(url) <= _URL_LENGTH and _URL.fullmatch(url) else None


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header by its name in lower case."""
    return next((value for key, value in headers.items() if key.lower() == name), None)
