"""Keeping the tokens of our callback URLs out of what is stored or shown."""

import re
from typing import AnyStr

# A slash as it is, escaped in JSON (however deeply quoted), or percent-encoded (however often).
_SLASH = r"(?:\\*/|\\+u002f|%(?:25)*2f)"
_CALLBACK_URL = re.compile(rf"(callbacks{_SLASH}[\w-]+{_SLASH})[\w.~=-]+", re.ASCII | re.IGNORECASE)


def redact(body: AnyStr) -> AnyStr:
    """Return the text with the token of every callback URL in it replaced by `***`."""
    if isinstance(body, bytes):
        # Latin-1 maps every byte to one character and back, so the rest stays as it is.
        return _mask(body.decode("latin-1")).encode("latin-1")
    return _mask(body)


def _mask(text: str) -> str:
    return _CALLBACK_URL.sub(r"\1***", text)
