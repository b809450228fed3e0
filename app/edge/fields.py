"""What callers may write into a field."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

# PostgreSQL stores no NUL. Lone surrogates are refused by pydantic itself. A pattern, rather than a validator, tells
# it in the OpenAPI document too.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class StrictModel(BaseModel):
    """
    A request body: no unknown fields, and no value taken for one of another type.

    Bodies reach pydantic as Python objects, so a time, an enum or a UUID in one
    needs `Field(strict=False)` to be read from its JSON string.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
