"""Outbound HTTP: opens every client, and keeps URLs of callers from reaching our own network (SSRF)."""

from app.egress.clients import EgressRefused, Resolver, guarded_client, plain_client, post_request, upstream_client
from app.egress.codings import CodingBroken, InflatedTooLarge, codings_of, inflated
from app.egress.exchange import (
    CappedResponse,
    Download,
    ExchangeTooSlow,
    ResponseGarbled,
    ResponseTooLarge,
    decoded_chunks,
    send_capped,
    stream_following,
)
from app.egress.rules import Networks, UrlRefused, check_url, is_forbidden, is_internal

__all__ = [
    "CappedResponse",
    "CodingBroken",
    "Download",
    "EgressRefused",
    "ExchangeTooSlow",
    "InflatedTooLarge",
    "Networks",
    "Resolver",
    "ResponseGarbled",
    "ResponseTooLarge",
    "UrlRefused",
    "check_url",
    "codings_of",
    "decoded_chunks",
    "guarded_client",
    "inflated",
    "is_forbidden",
    "is_internal",
    "plain_client",
    "post_request",
    "send_capped",
    "stream_following",
    "upstream_client",
]
