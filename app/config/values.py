"""How the values of settings are written: spans, rates, networks and lists."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, PlainValidator
from pydantic_settings import NoDecode


class Rate(NamedTuple):
    """At most `requests` requests in any window of `period`."""

    requests: int
    period: timedelta


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


def _lasting_span(value: object) -> timedelta:
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
    return Rate(int(count), _lasting_span(seconds))


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8, separated by commas") from None


Span = Annotated[timedelta, PlainValidator(parse_span)]
LastingSpan = Annotated[timedelta, PlainValidator(_lasting_span)]
StringList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Spans = Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_split)]
RateSetting = Annotated[Rate, NoDecode, PlainValidator(parse_rate)]
OptionalRateSetting = Annotated[
    Rate | None, NoDecode, PlainValidator(lambda value: None if value is None else parse_rate(value))
]
Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)], ...], NoDecode, BeforeValidator(_split)
]
