"""How the values of settings are written: spans, rates, networks and lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import httpx
from pydantic import BeforeValidator, PlainValidator
from pydantic_settings import NoDecode

# White space, and the marks without width that a copy from a web page brings along.
_EDGE = re.compile("^[\\s\u200b-\u200f\u2060\ufeff]+|[\\s\u200b-\u200f\u2060\ufeff]+$")
_VISIBLE_ASCII = re.compile("[!-~]+")
_PRICE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


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


def parse_models(value: object) -> dict[str, str]:
    """
    Read `V6,V5=V6`: each model that may be ordered, with the one that is sent for it. Raises ValueError.

    A name alone is sent as it is.
    """
    words = _split(value)
    if isinstance(words, dict):
        words = [f"{ordered}={sent}" for ordered, sent in words.items()]
    pairs = [[part.strip() for part in str(word).split("=")] for word in words]  # type: ignore[attr-defined]
    if not pairs:
        raise ValueError("must name at least one model")
    if any(len(pair) > 2 or not all(pair) for pair in pairs):
        raise ValueError("must be models such as V6, and aliases such as V5=V6, separated by commas")
    if len({ordered for ordered, *_ in pairs}) < len(pairs):
        raise ValueError("must name each model once")
    return {ordered: (sent or [ordered])[0] for ordered, *sent in pairs}


@dataclass(frozen=True, slots=True)
class Prices:
    """What a task costs, in credits: by model, and for all others."""

    by_model: Mapping[str, Decimal]
    other: Decimal = Decimal("2.5")


def parse_prices(value: object) -> Prices:
    """Read `2.5`, `V6=4,V5=2.5` or `2.5,V6=4`, with at most three decimals. Raises ValueError."""
    if isinstance(value, Prices):
        return value
    by_model, other = dict[str, Decimal](), list[Decimal]()
    for word in str(value).split(","):
        model, equals, price = word.strip().rpartition("=")
        if not _PRICE.fullmatch(price.strip()) or bool(equals) != bool(model.strip()) or model.strip() in by_model:
            raise ValueError("must be credits such as 2.5, or by model, such as V6=4,V5=2.5")
        if equals:
            by_model[model.strip()] = Decimal(price.strip())
        else:
            other.append(Decimal(price.strip()))
    if len(other) > 1:
        raise ValueError("must have one price for all models, or one for each")
    return Prices(by_model, *other)


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _origin(value: object) -> str:
    """Read the origin of a web page (RFC 6454 §6.2), as browsers write it: in lower case, without the default port."""
    try:
        url = urlsplit(str(value))
        is_origin = url.scheme in _DEFAULT_PORTS and url.hostname and url.port != 0 and not {*"@*"} & {*url.netloc}
        if not is_origin or url.path or url.query or url.fragment or not str(value).isascii():
            raise ValueError
    except ValueError:
        raise ValueError("must be origins such as https://app.example.com, separated by commas") from None
    return str(value).lower().removesuffix(f":{_DEFAULT_PORTS[url.scheme]}").removesuffix(":")


Span = Annotated[timedelta, PlainValidator(parse_span)]
PositiveSpan = Annotated[timedelta, PlainValidator(_positive_span)]
Models = Annotated[dict[str, str], NoDecode, PlainValidator(parse_models)]
PriceSetting = Annotated[Prices, NoDecode, PlainValidator(parse_prices)]
Origins = Annotated[tuple[Annotated[str, PlainValidator(_origin)], ...], NoDecode, BeforeValidator(_split)]
Spans = Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_split)]
RateSetting = Annotated[Rate, NoDecode, PlainValidator(parse_rate)]
OptionalRateSetting = Annotated[
    Rate | None, NoDecode, PlainValidator(lambda value: None if value is None else parse_rate(value))
]
Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, PlainValidator(_network)], ...], NoDecode, BeforeValidator(_split)
]
