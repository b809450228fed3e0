"""What callers may write into a field."""

import re
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

# PostgreSQL stores no NUL. Lone surrogates are refused by pydantic itself. A pattern, rather than a validator, tells
# it in the OpenAPI document too.
WITHOUT_NUL = r"^[^\x00]*$"
Text = Annotated[str, StringConstraints(pattern=WITHOUT_NUL)]

# The examples of the OpenAPI document name the same key, task, endpoint, event and delivery throughout.
EXAMPLE_TASK_ID = "019a6c1e7b7f7d0e8c5a2f4b6d8e0a1c"
EXAMPLE_KEY_ID = "019a6b0a2d1e7c408f3b5d7e9a1c3e5f"
EXAMPLE_ENDPOINT_ID = "019a6b0f5c3d7a118b2c4d6e8f0a2b4c"
EXAMPLE_EVENT_ID = "019a6c1f1f2a7b3c9d4e5f60718293a4"
EXAMPLE_DELIVERY_ID = "019a6c1f1f2b7c4d8e5f60718293a4b5"

UUID_PATTERN = "^([0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})$"

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def as_id(text: str) -> str | None:
    """The id that a UUID is here, however it is written: 32 hex digits in lower case. None for other text."""
    return text.replace("-", "").lower() if re.fullmatch(UUID_PATTERN, text) else None


def canonical_id(text: str) -> str:
    """The same, and other text as it is: nothing has that for its id."""
    return as_id(text) or text


def _written(value: object) -> object:
    # Left alone, pydantic takes numbers for Unix times and dates for midnights.
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be a time as in RFC 3339, such as 2026-01-31T08:00:00Z")
    return value


def _as_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON has one kind of number: 90.0 is as whole as 90.
WHOLE = BeforeValidator(_as_whole)

# A moment, in a query or a body.
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_written)]


class StrictModel(BaseModel):
    """
    A request body: no unknown fields, and no value taken for one of another type.

    Bodies reach pydantic as Python objects, so a time, an enum or a UUID in one
    needs `Field(strict=False)` to be read from its JSON string.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
