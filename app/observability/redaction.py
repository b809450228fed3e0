"""Keeping the tokens of our callback URLs out of what is stored or shown."""

import re
from collections.abc import Sequence
from typing import AnyStr

# A slash as it is, escaped in JSON (however deeply quoted), or percent-encoded (however often).
_SLASH = r"(?:\\*/|\\+u002f|%(?:25)*2f)"
MIN_SECRET_LENGTH = 8
_CALLBACK_URL = re.compile(rf"(callbacks{_SLASH}[\w-]+{_SLASH})[\w.~=-]+", re.ASCII | re.IGNORECASE)


def redact(body: AnyStr, *secrets: str) -> AnyStr:
    """Return the text with the token of every callback URL in it, and these secrets, replaced by `***`."""
    if isinstance(body, bytes):
        # Latin-1 maps every byte to one character and back, so the rest stays as it is.
        return _mask(body.decode("latin-1"), secrets).encode("latin-1")
    return _mask(body, secrets)


def _mask(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        # What is as short as a word would take words away, and hides nothing.
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, "***")
    return _CALLBACK_URL.sub(r"\1***", text)
