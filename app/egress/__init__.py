"""The one way out: opens every HTTP client, and keeps what callers name from reaching our own network."""

from app.egress.clients import EgressRefused, Resolver, guarded_client, upstream_client
from app.egress.exchange import Answer, AnswerTooLarge, Download, ExchangeTooSlow, send_capped, stream_following
from app.egress.rules import Networks, UrlRefused, check_url, is_forbidden

__all__ = [
    "Answer",
    "AnswerTooLarge",
    "Download",
    "EgressRefused",
    "ExchangeTooSlow",
    "Networks",
    "Resolver",
    "UrlRefused",
    "check_url",
    "guarded_client",
    "is_forbidden",
    "send_capped",
    "stream_following",
    "upstream_client",
]
