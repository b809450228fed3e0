"""Outbound HTTP: opens every client, and keeps URLs of callers from reaching our own network (SSRF)."""

from app.egress.clients import EgressRefused, Resolver, guarded_client, plain_client, upstream_client
from app.egress.exchange import (
    CappedResponse,
    Download,
    ExchangeTooSlow,
    ResponseTooLarge,
    send_capped,
    stream_following,
)
from app.egress.rules import Networks, UrlRefused, check_url, is_forbidden

__all__ = [
    "CappedResponse",
    "Download",
    "EgressRefused",
    "ExchangeTooSlow",
    "Networks",
    "Resolver",
    "ResponseTooLarge",
    "UrlRefused",
    "check_url",
    "guarded_client",
    "is_forbidden",
    "plain_client",
    "send_capped",
    "stream_following",
    "upstream_client",
]
