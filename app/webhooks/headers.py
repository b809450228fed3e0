"""The headers that an owner adds to the webhooks of an endpoint: which may be given, and how they are stored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.keyring import Keyring, SealBroken
from app.models import WebhookEndpoint

MAX_HEADERS, MAX_NAME, MAX_VALUE = 16, 100, 1024
# RFC 9110 §5.6.2; and of a field value (§5.5) what every receiver reads alike.
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
# What frames the message or is for the next hop alone (RFC 9110 §7.6.1), and what each attempt sets itself. Names that
# begin with one of the prefixes describe the body, or belong to Standard Webhooks.
_TAKEN = frozenset(
    {"accept-encoding", "host", "traceparent", "tracestate", "user-agent"}
    | {"connection", "expect", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization"}
    | {"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_TAKEN_PREFIXES = "content-", "webhook-"
# The same for the OpenAPI document.
NAMES_SCHEMA: dict[str, Any] = {"propertyNames": {"pattern": f"^{TOKEN.pattern}$", "maxLength": MAX_NAME}}
VALUE_SCHEMA: dict[str, Any] = {"pattern": f"^{VALUE.pattern}$", "minLength": 1, "maxLength": MAX_VALUE}
_PURPOSE = "webhook-headers"


class HeadersLost(Exception):
    """The headers of an endpoint cannot be decrypted; the message is for its owner."""


def check_name(name: str) -> str:
    """Return the name of a header that an endpoint may have. Raises ValueError."""
    if not TOKEN.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"must be the name of a header: 1 to {MAX_NAME} letters, digits and !#$%&'*+-.^_`|~")
    if name.lower() in _TAKEN or name.lower().startswith(_TAKEN_PREFIXES):
        raise ValueError("is a header that Soundpost or the HTTP connection sets itself")
    return name


def check_value(value: str) -> None:
    """Raise ValueError, without the value, for one that no header could carry."""
    if not VALUE.fullmatch(value) or len(value) > MAX_VALUE:
        raise ValueError(f"must be 1 to {MAX_VALUE} visible ASCII characters, with spaces between them at most")


def check_distinct(names: Mapping[str, object]) -> None:
    """Raise ValueError for names that are the same header, since case does not count."""
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("must name each header once, whatever its case")


def store_headers(keyring: Keyring, endpoint: WebhookEndpoint, headers: Mapping[str, str]) -> None:
    """Replace the headers of an endpoint, encrypted for it alone; none remove them."""
    if not headers:
        endpoint.headers = endpoint.headers_key = endpoint.header_names = None
        return
    endpoint.headers = keyring.seal(_PURPOSE, endpoint.id, json.dumps(headers).encode())
    endpoint.headers_key, endpoint.header_names = keyring.signer, [*headers]


def secrets_in(headers: Mapping[str, str]) -> Sequence[str]:
    """What receivers may repeat of headers: each value, and the credential behind a scheme, plain and as in JSON."""
    values = [part for value in headers.values() for part in (value, value.partition(" ")[2])]
    return [form for value in values for form in (value, json.dumps(value)[1:-1])]


def headers_of(keyring: Keyring, endpoint: WebhookEndpoint) -> Mapping[str, str]:
    """The headers of an endpoint. Raises HeadersLost."""
    if endpoint.headers is None:
        return {}
    try:
        headers: dict[str, str] = json.loads(keyring.unseal(_PURPOSE, endpoint.id, endpoint.headers))
    except SealBroken:
        raise HeadersLost("the endpoint's headers cannot be decrypted any more: set them again") from None
    return headers
