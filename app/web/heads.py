"""HEAD wherever there is GET."""

from copy import copy

from fastapi import APIRouter
from fastapi.routing import APIRoute


def heads_of(router: APIRouter) -> APIRouter:
    """
    A router's resources once more, for HEAD (RFC 9110, 9.3.2), which the framework gives to none of its own routes.

    What an endpoint sends behind the head, the server leaves out.
    """
    heads = APIRouter()
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            head = copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            heads.routes.append(head)
    return heads
