"""Lenient readers of single values: text, numbers, ids, URLs and headers of any type and spelling."""

import json
import math
import re
from collections.abc import Mapping
from itertools import islice
from urllib.parse import quote

_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_URL = re.compile("https?://[^\\s/?#\x00-\x1f\x7f\ud800-\udfff][^\\s\x00-\x1f\x7f\ud800-\udfff]*", re.IGNORECASE)
_ORIGIN = re.compile(r"^(https?://[^/?#]*)", re.IGNORECASE)
_LINE_BREAKS = re.compile(r"[\t\r\n]")
_SPACES = re.compile(r"\s")
# What becomes of a link that is built from an id that is not there.
_PLACEHOLDER = re.compile(
    r"[/=](?:\(?(?:none|null|nil|nan|undefined)\)?|\[object%20object\]|\$?(?:\{|%7b)\w*(?:\}|%7d))(?:\.\w{1,5})?(?=[/?&#]|$)"
    r"|/\.(?:mp3|wav|m4a|mp4|ogg|flac|jpe?g|png)(?=[?#]|$)",
    re.IGNORECASE,
)
# What a copy, or a program that writes a link into JSON or HTML, puts around it and in it.
_AROUND = " \t\r\n\v\f\u00a0\u200b\u2060\ufeff\"'<>"
_ESCAPES = {"\\/": "/", "&amp;": "&"}
_MAX_URL_LENGTH = 4096
_MAX_INTEGER = 2**31 - 1
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
# Far more than they send. Without a limit, a body of nothing but keys would block the event loop.
_MAX_FIELDS = 1000


def read_json(body: bytes | str) -> object:
    """
    Return the decoded body, or None when it is not JSON.

    Broken UTF-8, a byte order mark, NaN and lone surrogates are accepted: one bad
    character in a title must not cost a paid sound.
    """
    try:
        text = body.decode("utf-8-sig", "replace") if isinstance(body, bytes) else body
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def unpacked(value: object) -> object:
    """Return the value, decoded once more where it is JSON inside a string."""
    return read_json(value) if isinstance(value, str) else value


def fields(value: object) -> dict[str, object]:
    """
    Return the object's fields under names in lower case without underscores.

    `task_id` and `taskId` become one name. Where both are sent, the first that is not empty counts.
    """
    if not isinstance(value, dict):
        return {}
    items = [(key.replace("_", "").lower(), item) for key, item in islice(value.items(), _MAX_FIELDS)]
    named = dict(items)
    if len(named) < len(items):
        # Backwards, so that the first is set last.
        named |= {name: item for name, item in reversed(items) if item not in (None, "")}
    return named


def read_text(value: object, limit: int) -> str | None:
    """Return text that any database can store, at most `limit` characters, or None when it is empty."""
    if not isinstance(value, str):
        return None
    return _NOT_STORABLE.sub("", value).strip()[:limit] or None


def read_id(value: object) -> str | None:
    """Return an id of the upstream, which may be sent as a number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        value = str(value)
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def read_integer(value: object) -> int | None:
    """Return an integer that fits a column: from 405, "405" and 405.0, but not from true."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) <= _MAX_INTEGER else None


def read_number(value: object) -> float | None:
    """Return a finite number, also from text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_url(value: object) -> str | None:
    """
    Return an http(s) URL, with white space in its path percent-encoded; without line breaks, escapes and quotes.

    A placeholder (`…/None.mp3`) is dropped, and so is a URL that is too long, since half a URL leads nowhere.
    """
    if not isinstance(value, str) or not value:
        return None
    text = _LINE_BREAKS.sub("", value.strip(_AROUND))
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    origin, path = _ORIGIN.split(text, maxsplit=1)[1:] or ("", "")
    url = origin + _SPACES.sub(lambda space: quote(space[0]), path)
    is_usable = len(url) <= _MAX_URL_LENGTH and _URL.fullmatch(url) and not _PLACEHOLDER.search(url)
    return url if is_usable else None


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header; `name` is in lower case."""
    return next((value for key, value in headers.items() if key.lower() == name), None)
