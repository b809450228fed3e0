"""Turns every exception of the framework, the database or our code into an AppError, and that into a problem."""

import logging
import traceback
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.errors import (
    AppError,
    ContentTooLarge,
    DatabaseUnavailable,
    FieldError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotAuthenticated,
    NotFound,
    StatementTimedOut,
    TooManyRequests,
    UnreadableBody,
    UnsupportedMediaType,
)
from app.web.fields import WITHOUT_NUL
from app.web.problems import pointer_to, problem

logger = logging.getLogger(__name__)

# The key in a request's scope of the error that it gets wherever there is nothing.
INSTEAD_OF_NOT_FOUND = "soundpost.instead_of_not_found"
_OUR_CODE = str(Path(__file__).parents[1])


def as_app_error(exc: Exception) -> AppError:
    """
    Return the error that an exception is to the caller.

    Logs the exceptions that are not the caller's fault, without anything that the caller sent.
    """
    match exc:
        case AppError():
            return exc
        case RequestValidationError():
            return _invalid_request(exc)
        case HTTPException() if exc.status_code in _BY_STATUS:
            return _BY_STATUS[exc.status_code]()
        case ClientDisconnect():
            return UnreadableBody()
    if isinstance(exc, DBAPIError) and getattr(exc.orig, "sqlstate", None) == _QUERY_CANCELED:
        logger.warning("statement timed out: %s at %s", type(exc).__name__, _location(exc))
        return StatementTimedOut()
    if _is_database_unavailable(exc):
        logger.warning("database unavailable: %s at %s", type(exc).__name__, _location(exc))
        return DatabaseUnavailable()
    logger.error("request failed: %s at %s", type(exc).__name__, _location(exc))
    return InternalError()


def error_for(scope: Scope, exc: Exception) -> AppError:
    """Return the error that an exception is to whoever sent this request."""
    error = as_app_error(exc)
    return scope.get(INSTEAD_OF_NOT_FOUND, error) if isinstance(error, NotFound) else error


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception with `application/problem+json` (RFC 9457)."""
    for kind in (AppError, RequestValidationError, HTTPException, SQLAlchemyError, OSError, Exception):
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, exc: Exception) -> Response:
    error = error_for(request.scope, exc)
    if isinstance(error, MethodNotAllowed):
        error.headers = {"Allow": ", ".join(_allowed_methods(request))}
    return problem(error)


_BY_STATUS: Mapping[int, type[AppError]] = {
    400: UnreadableBody,
    401: NotAuthenticated,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    413: ContentTooLarge,
    415: UnsupportedMediaType,
    422: InvalidRequest,
    429: TooManyRequests,
}

# The SQLSTATE classes that mean "retry later", and not that the statement is wrong: connection exception, transaction
# rollback, insufficient resources, object not in prerequisite state, operator intervention, system error; and a
# transaction that was idle for too long, and a pooler that lost or has a prepared statement. The asyncpg dialect wraps
# most of them in a bare DBAPIError.
_TRANSIENT_SQLSTATES = ("08", "40", "53", "55", "57", "58", "25P03", "26000", "42P05")
# The server's statement_timeout ended the statement: the database is there, and the statement was slow.
_QUERY_CANCELED = "57014"
_DATABASE_MODULES = ("sqlalchemy.pool", "sqlalchemy.dialects")


def _is_database_unavailable(exc: Exception) -> bool:
    if isinstance(exc, InterfaceError):
        # asyncpg also raises it for a value that does not fit its column.
        return not isinstance(exc.orig and exc.orig.__cause__, ValueError)
    if isinstance(exc, DBAPIError):
        sqlstate = getattr(exc.orig, "sqlstate", None) or ""
        is_transient = exc.connection_invalidated or sqlstate.startswith(_TRANSIENT_SQLSTATES)
        return is_transient or isinstance(exc, OperationalError)
    # SQLAlchemy does not wrap asyncpg's OSErrors: only the modules in the traceback tell them from those of files.
    modules = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(exc.__traceback__))
    return isinstance(exc, OSError | PoolTimeout) and any(name.startswith(_DATABASE_MODULES) for name in modules)


# pydantic's messages of these types quote the value.
_QUOTING = frozenset({"union_tag_invalid", "uuid_parsing"})
_UNQUOTED = "This value cannot be accepted"


def _invalid_request(exc: RequestValidationError) -> AppError:
    """Return a validation error without the input, which may be huge, secret, or not text."""
    errors = exc.errors()
    if any(
        error["type"] == "json_invalid" or (error["type"], error["loc"]) == ("missing", ("body",)) for error in errors
    ):
        return UnreadableBody()
    # For optional query parameters pydantic also reports `none_required`, which a client cannot act on.
    relevant = [error for error in errors if error["type"] != "none_required"]
    return InvalidRequest(errors=[field_error(error) for error in relevant[:20]])


def field_error(error: Mapping[str, Any]) -> FieldError:
    """One error of pydantic in our words; its place begins with `body`, `query`, `path` or `header`."""
    # A pointer into the body starts at its root, one to a parameter with "query", "path" or "header". "[key]" is
    # pydantic's, not a name, and so is what follows the name of a parameter: the type of the union that was tried.
    where, *names = (step for step in error["loc"] if step != "[key]")
    tokens = names if where == "body" else [where, *names[:1]]
    message, value = str(error["msg"]).removeprefix("Value error, "), error.get("input")
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == WITHOUT_NUL:
        message = "This text must not contain NUL"
    quoted = error["type"] in _QUOTING or (isinstance(value, str) and len(value) > 3 and value in message)
    return {"pointer": pointer_to(tokens), "detail": _UNQUOTED if quoted else message}


def _allowed_methods(request: Request) -> list[str]:
    # Starlette names the methods of the first route with this path, but several routes may have it.
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return [method for method in methods if _is_routed(request, method)]


def _is_routed(request: Request, method: str) -> bool:
    known = {name: request.scope[name] for name in ("type", "path", "root_path", "headers")}
    return any(route.matches(known | {"method": method})[0] is Match.FULL for route in request.app.router.routes)


def _location(exc: Exception) -> str:
    """Return where an exception was raised, and our frames above. Without its message, which may quote the caller."""
    *way, origin = traceback.extract_tb(exc.__traceback__)
    ours = [frame for frame in reversed(way) if frame.filename.startswith(_OUR_CODE)]
    return " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in [origin, *ours[:8]])
