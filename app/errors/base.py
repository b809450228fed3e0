"""What every error of a caller is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict

RETRY_SOON: Mapping[str, str] = {"Retry-After": "2"}


class FieldError(TypedDict):
    """One error in a request: what is wrong, and where, as a JSON pointer in its URI fragment form (RFC 6901 §6)."""

    pointer: str
    detail: str


class AppError(Exception):
    """
    A request could not be served.

    The docstring of each subclass is its public `title`: editing it changes the API. `advice` is the `detail` of
    an error that is raised without one, and `dynamic_headers` names the headers that are given where it is raised.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    advice: ClassVar[str]
    headers: Mapping[str, str] = {}
    dynamic_headers: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls) -> None:
        cls.title = (cls.__doc__ or cls.__name__).strip()

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **members: str | float | None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.advice
        self.errors = errors
        self.headers = {**self.headers, **(headers or {})}
        self.members = members


def cases(root: type[AppError] = AppError) -> list[type[AppError]]:
    """Return every class of the tree below `root`, in the order of definition."""
    return [case for child in root.__subclasses__() for case in (child, *cases(child))]
