"""What callers may write into the fields of a webhook endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from app.config import parse_rate
from app.enums import WebhookType
from app.web import Text
from app.webhooks.headers import MAX_HEADERS, NAMES_SCHEMA, VALUE_SCHEMA, check_distinct, check_name, check_value

MAX_PERIOD = timedelta(days=1)
EXAMPLE_URL = "https://example.com/hooks/sounds"

Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048),
    Field(
        description="An HTTP or HTTPS URL, at most 2048 characters, without credentials. It must not lead to a private"
        " address.",
        examples=[EXAMPLE_URL],
        json_schema_extra={"format": "uri"},
    ),
]
EventTypes = Annotated[
    Annotated[list[Annotated[WebhookType, Field(strict=False)]], Field(min_length=1, max_length=len(WebhookType))]
    | None,
    Field(
        description="The event types to send; null sends all, those of later releases too.",
        examples=[["task.succeeded", "task.failed"]],
    ),
]
Description = Annotated[
    Annotated[Text, StringConstraints(max_length=500)] | None,
    Field(description="Your own note about the endpoint, at most 500 characters; null for none.", examples=["Staging"]),
]


def _checked_value(value: SecretStr) -> SecretStr:
    check_value(value.get_secret_value())
    return value


def _distinct(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    check_distinct(headers)
    return headers


Headers = Annotated[
    Annotated[
        dict[
            Annotated[str, AfterValidator(check_name)],
            Annotated[SecretStr, AfterValidator(_checked_value), Field(json_schema_extra=VALUE_SCHEMA)],
        ],
        Field(max_length=MAX_HEADERS, json_schema_extra=NAMES_SCHEMA),
        AfterValidator(_distinct),
    ]
    | None,
    Field(
        description="Headers that each attempt carries, such as a credential for your gateway: at most 16, with names"
        " of at most 100 characters and values of at most 1024 visible ASCII characters and spaces. They take the"
        " place of all former ones; null or an empty object removes them. Values are stored encrypted and never shown."
        " `webhook-*`, `content-*` and what the connection or a trace needs, such as `Host` or `traceparent`, are"
        " refused.",
        examples=[{"Authorization": "Bearer 4f7a90c2"}],
    ),
]


def _written_rate(text: str) -> str:
    rate = parse_rate(text)
    if rate.period > MAX_PERIOD:
        raise ValueError("must be a rate over a day or less")
    return f"{rate.requests}/{f'{rate.period.total_seconds():.6f}'.rstrip('0').rstrip('.')}"


EndpointRate = Annotated[
    Annotated[
        str,
        StringConstraints(max_length=32),
        AfterValidator(_written_rate),
        Field(json_schema_extra={"pattern": "^[1-9][0-9]{0,3}/([1-9][0-9]{0,3}|0\\.[1-9])$"}),
    ]
    | None,
    Field(
        description="At most so many attempts in any window of so many seconds, as `requests/seconds`, whatever number"
        " of processes sends: 1 to 10000 requests in at most 86400 seconds. Deliveries beyond it wait for their turn"
        " in order, which uses up no attempt. Null for none.",
        examples=["10/1"],
    ),
]


def revealed(headers: Mapping[str, SecretStr] | None) -> Mapping[str, str]:
    """Headers with their values, to be stored or sent."""
    return {name: value.get_secret_value() for name, value in (headers or {}).items()}
