"""Where hostile input is met, once: connections, requests, bodies, fields and whatever still goes wrong."""

from app.edge.again import Again
from app.edge.fields import WHOLE, Moment, StrictModel, Text
from app.edge.handlers import install_error_handlers
from app.edge.heads import heads_of
from app.edge.middleware import Edge
from app.edge.protocol import HttpProtocol

__all__ = [
    "WHOLE",
    "Again",
    "Edge",
    "HttpProtocol",
    "Moment",
    "StrictModel",
    "Text",
    "heads_of",
    "install_error_handlers",
]
