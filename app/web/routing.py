"""Routes: HEAD beside every GET, and a retry when the database rolls a transaction back."""

from collections.abc import Awaitable, Callable, Coroutine
from copy import copy
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import Response

Value = TypeVar("Value")
MAX_RETRIES = 3
# SQLSTATE: serialization_failure, deadlock_detected.
RETRYABLE_SQLSTATES = frozenset({"40001", "40P01"})


async def retried(handle: Callable[[], Awaitable[Value]]) -> Value:
    """The result of a handler, which runs again, up to MAX_RETRIES times, where PostgreSQL rolls it back."""
    for _ in range(MAX_RETRIES):
        try:
            return await handle()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRYABLE_SQLSTATES:
                raise
    return await handle()


class RetryOnSerializationFailure(APIRoute):
    """
    A route whose handler runs again when PostgreSQL rolls its transaction back.

    A serialization failure or a deadlock stores nothing, and the request is not at
    fault: the caller need not see it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, retried at most MAX_RETRIES times."""
        handle = super().get_route_handler()

        async def handle_with_retries(request: Request) -> Response:
            return await retried(partial(handle, request))

        return handle_with_retries


class Router(APIRouter):
    """
    The router of every room: its routes retry, and each GET route answers HEAD too.

    The framework gives HEAD (RFC 9110 §9.3.2) to none of its own routes. The server
    leaves out the body that a handler sends for it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=RetryOnSerializationFailure, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route, and one for HEAD, which the OpenAPI document does not list, if it is for GET."""
        super().add_api_route(path, endpoint, **options)
        route = self.routes[-1]
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            self.routes.append(head)
