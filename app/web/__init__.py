"""HTTP: what every connection, request, body, field, route and error goes through."""

from app.web.exception_handlers import install_error_handlers
from app.web.fields import WHOLE, Moment, StrictModel, Text
from app.web.middleware import EdgeMiddleware, TolerantPaths, read_body, replayed
from app.web.protocol import HttpProtocol
from app.web.routing import Router, retried

__all__ = [
    "WHOLE",
    "EdgeMiddleware",
    "HttpProtocol",
    "Moment",
    "Router",
    "StrictModel",
    "Text",
    "TolerantPaths",
    "install_error_handlers",
    "read_body",
    "replayed",
    "retried",
]
