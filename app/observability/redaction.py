"""Secrets are replaced by `***` before text is stored, shown or logged, and controls escaped for a terminal."""

import json
import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import AnyStr
from urllib.parse import quote

# A shorter secret protects nothing, and its removal would garble the text.
MIN_SECRET_LENGTH = 8
# A slash as it is, escaped in JSON (however deeply quoted), or percent-encoded (however often).
_SLASH = r"(?:\\*/|\\+u002f|%(?:25)*2f)"
_CALLBACK_URL = re.compile(rf"(callbacks{_SLASH}[\w-]+{_SLASH})[\w.~=-]+", re.ASCII | re.IGNORECASE)
_CREDENTIAL = re.compile(
    r"((?:signature|key|token|password)=)[^&\s\"']+|((?:Bearer|whsec_)\s?)\S+|(\w://[^\s:/@]{0,256}:)\S{1,256}(?=@)",
    re.IGNORECASE,
)


# The prompt of the task that an attempt is for.
_hidden: ContextVar[tuple[str, ...]] = ContextVar("hidden", default=())


def redact(body: AnyStr, *secrets: str) -> AnyStr:
    """Return the text without the tokens of callback URLs and without these secrets."""
    if isinstance(body, bytes):
        # Latin-1 maps every byte to one character and back, so the rest is unchanged.
        return _redact(body.decode("latin-1"), secrets).encode("latin-1")
    return _redact(body, secrets)


def redact_log_value(text: str) -> str:
    """Return the text without tokens of callback URLs, anything written like a credential, and what is hidden here."""
    return _CREDENTIAL.sub(lambda match: f"{match[1] or match[2] or match[3]}***", redact(text, *_hidden.get()))


def hide_in_log(prompt: str) -> None:
    """Leave a prompt, which the upstream may repeat, out of every line that is logged in this context from now on."""
    _hidden.set(_forms(prompt))


def without_prompt(text: str, prompt: str) -> str:
    """Return a text of the upstream without the prompt, which it may repeat."""
    return redact(text, *_forms(prompt))


def _forms(prompt: str) -> tuple[str, ...]:
    """A prompt as it is, and as JSON writes it."""
    return prompt, json.dumps(prompt)[1:-1], json.dumps(prompt, ensure_ascii=False)[1:-1]


def loggable_path(path: str) -> str:
    """
    A path without control characters, and without what may be a secret, however the URL is misspelt.

    That is a callback's token, and the signature of a link without its question mark.
    """
    head, name, _ = path.partition("signature=" if path.startswith("/v1/") else "callback")
    return quote(head + name, safe="/:@!$&'()*+,;=~") + ("…" if name else "")


def printable(text: str, kept: str = "") -> str:
    """Return the text with control and invisible characters escaped as in Python, but for those in `kept`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def _redact(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, "***")
    # To look for the word costs a tenth of what the pattern does.
    return _CALLBACK_URL.sub(r"\1***", text) if "callbacks" in text.lower() else text
