"""Where hostile input is met, once: connections, requests, bodies, fields and whatever still goes wrong."""

from app.edge.fields import StrictModel, Text
from app.edge.handlers import install_error_handlers
from app.edge.middleware import Edge

__all__ = ["Edge", "StrictModel", "Text", "install_error_handlers"]
