"""Requests that are handled again because the database undid them."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import Response

AGAIN = 3
# SQLSTATE: a serialization failure, a deadlock.
UNDONE = frozenset({"40001", "40P01"})


class RetryOnSerializationFailure(APIRoute):
    """
    A route that is handled again where its transaction was undone to let another one pass.

    Nothing was stored, and nothing is wrong with the request: the caller need not
    know of it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's own, a few times."""
        handle = super().get_route_handler()

        async def handle_again(request: Request) -> Response:
            for _ in range(AGAIN):
                try:
                    return await handle(request)
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) not in UNDONE:
                        raise
            return await handle(request)

        return handle_again
