"""Validation of submits, with the upstream's error messages."""

from typing import Any

import httpx
from pydantic_core import from_json

from app.sandbox.audio import KEYS
from app.sandbox.state import Order

MODELS = frozenset({"V5", "V5_5", "V6", "V6_WILD", "V6_MINI"})

_MAX_PROMPT_LENGTH = 500


class ApiError(Exception):
    """An error in the upstream's envelope: a code, with its usual message unless another is given."""

    def __init__(self, code: int, message: str | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def read_fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object; empty for any other body."""
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def read_order(fields: dict[str, Any]) -> Order:
    """Validate a submit; unknown fields are ignored. Raises ApiError."""
    return Order(
        prompt=_prompt(fields.get("prompt")),
        model=_choice(fields, "model", MODELS),
        loop=_flag(fields, "soundLoop"),
        tempo=_tempo(fields.get("soundTempo")),
        key=_choice({"soundKey": "Any"} | _without_nulls(fields), "soundKey", KEYS),
        lyrics=_flag(fields, "grabLyrics"),
        callback_url=_callback_url(fields.get("callBackUrl")),
    )


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ApiError(400, "prompt cannot be empty")
    if len(value) > _MAX_PROMPT_LENGTH:
        raise ApiError(413, f"prompt cannot exceed {_MAX_PROMPT_LENGTH} characters")
    return value


def _tempo(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= 300:
        raise ApiError(400, "soundTempo must be an integer between 1 and 300")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be a boolean")
    return bool(value)


def _choice(fields: dict[str, Any], name: str, allowed: frozenset[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or value not in allowed:
        raise ApiError(400, f"{name} is invalid, allowed: {', '.join(sorted(allowed))}")
    return value


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _callback_url(value: Any) -> str:
    # The upstream documents it as optional, but requires it.
    try:
        url = httpx.URL(value or "")
        usable = url.scheme in ("http", "https") and url.host != ""
    except (httpx.InvalidURL, TypeError, ValueError):
        usable = False
    if not usable:
        raise ApiError(400, "Please enter callBackUrl.")
    return str(value)
