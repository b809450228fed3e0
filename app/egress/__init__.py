"""The one way out: opens every HTTP client, and keeps what callers name from reaching our own network."""

from app.egress.rules import Networks, UrlRefused, check_url, is_forbidden

__all__ = ["Networks", "UrlRefused", "check_url", "is_forbidden"]
