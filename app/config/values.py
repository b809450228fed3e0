"""How the values of settings are written: spans, rates, networks and lists."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import httpx
from pydantic import BeforeValidator, PlainValidator
from pydantic_settings import NoDecode

# White space, and the marks without width that a copy from a web page brings along.
_EDGE = re.compile("^[\\s\u200b-\u200f\u2060\ufeff]+|[\\s\u200b-\u200f\u2060\ufeff]+$")
_VISIBLE_ASCII = re.compile("[!-~]+")


class Rate(NamedTuple):
    """At most `requests` requests in any window of `period`."""

    requests: int
    period: timedelta


def cleaned(text: str) -> str:
    """
    Return a value without white space around it, and without the quotes that `docker --env-file` leaves in.

    Raises ValueError for control and invisible characters inside.
    """
    text = _EDGE.sub("", text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = _EDGE.sub("", text[1:-1])
    if not text.isprintable():
        raise ValueError("must not contain control or invisible characters")
    return text


def fits_header(text: str) -> bool:
    """Whether a key can be sent in a header: visible ASCII characters alone."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def parse_api_keys(configured: str) -> list[tuple[str, str]]:
    """Read `name:key,name:key` as pairs. Raises ValueError, whose message contains no key."""
    pairs = [pair.strip().partition(":") for pair in configured.split(",") if pair.strip()]
    if any(not (name and key) for name, _, key in pairs):
        raise ValueError("must be name:key pairs, separated by commas")
    if not all(fits_header(key.strip()) for _, _, key in pairs):
        raise ValueError("must hold keys of visible ASCII characters: a header cannot carry others")
    return [(name.strip(), key.strip()) for name, _, key in pairs]


def web_address(text: str) -> str:
    """Read a base URL, as the ASCII that headers can carry, without a slash at its end. Raises ValueError."""
    try:
        url, ascii_url = urlsplit(text), str(httpx.URL(text))
        is_usable = url.hostname and url.port != 0 and not (url.query or url.fragment or " " in text)
    except (ValueError, httpx.InvalidURL):
        is_usable = False
    if not is_usable or url.scheme not in ("http", "https"):
        raise ValueError("must be an address such as https://sounds.example.com")
    return (text if text.isascii() else ascii_url).rstrip("/")


def parse_span(value: object) -> timedelta:
    """Read a number of seconds, 0 or more. Raises ValueError."""
    if isinstance(value, timedelta):
        return value
    try:
        seconds = float(str(value))
        if not 0 <= seconds < 10**9:
            raise ValueError
    except ValueError:
        raise ValueError("must be a number of seconds, such as 30 or 0.5") from None
    return timedelta(seconds=seconds)


def _positive_span(value: object) -> timedelta:
    span = parse_span(value)
    if not span:
        raise ValueError("must be more than 0 seconds")
    return span


def _split(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def parse_rate(value: object) -> Rate:
    """Read `requests/seconds`. Raises ValueError."""
    if isinstance(value, Rate):
        return value
    count, slash, seconds = str(value).partition("/")
    if not slash or not count.strip().isdecimal() or not 1 <= int(count) <= 10_000:
        raise ValueError("must be requests/seconds, such as 20/10")
    return Rate(int(count), _positive_span(seconds))


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8, separated by commas") from None


Span = Annotated[timedelta, PlainValidator(parse_span)]
PositiveSpan = Annotated[timedelta, PlainValidator(_positive_span)]
StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Spans = Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_split)]
RateSetting = Annotated[Rate, NoDecode, PlainValidator(parse_rate)]
OptionalRateSetting = Annotated[
    Rate | None, NoDecode, PlainValidator(lambda value: None if value is None else parse_rate(value))
]
Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)], ...], NoDecode, BeforeValidator(_split)
]
