"""Which destinations callers may name: decided by the text of a URL or by an address alone."""

import re
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import httpx

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

MAX_URL_LENGTH = 2048


def _networks(*texts: str) -> Networks:
    return tuple(ip_network(text) for text in texts)


_NAT64 = _networks("64:ff9b::/96", "64:ff9b:1::/48")

# The first matching row counts: the last one is all of IPv6 outside of 2000::/3, and overlaps those above it.
_FORBIDDEN: Mapping[str, Networks] = {
    "an unspecified address": _networks("0.0.0.0/8", "::/128"),
    "a loopback address": _networks("127.0.0.0/8", "::1/128"),
    "a private address": _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
    "a link-local address": _networks("169.254.0.0/16", "fe80::/10"),
    "a carrier-grade NAT address": _networks("100.64.0.0/10"),
    "a multicast address": _networks("224.0.0.0/4", "ff00::/8"),
    "an IPv4-compatible address": _networks("::/96"),
    "a NAT64 address": _NAT64,
    "a Teredo address": _networks("2001::/32"),
    "a 6to4 address": _networks("2002::/16", "192.88.99.0/24"),
    "a special-purpose address": _networks("192.0.0.0/24", "2001::/23", "3fff::/20", "5f00::/16"),
    "a reserved address": _networks("240.0.0.0/4", "::/3", "4000::/2", "8000::/1"),
}

_THIS_MACHINE = _FORBIDDEN["a loopback address"]
_THIS_NETWORK = tuple(
    network
    for reason in ("a private address", "a link-local address", "a carrier-grade NAT address")
    for network in _FORBIDDEN[reason]
)

# Names of this machine or its own network on any resolver. One is allowed where an address that it may stand for is;
# the address that it resolves to is then checked like any other. The first matching row counts.
_LOCAL_NAMES: Mapping[str, Networks] = {
    "localhost": _THIS_MACHINE,
    "localhost4": _THIS_MACHINE,
    "localhost6": _THIS_MACHINE,
    "ip6-localhost": _THIS_MACHINE,
    "ip6-loopback": _THIS_MACHINE,
    "localhost.localdomain": _THIS_MACHINE,
    "localdomain": _THIS_NETWORK,
    "local": _THIS_NETWORK,
    "internal": _THIS_NETWORK,
    "home.arpa": _THIS_NETWORK,
}

# Last labels that no server on the internet has, though names of a network's own may end in them: those of RFC 2606, of
# Kubernetes, and of routers and offices.
_PRIVATE_SUFFIXES = frozenset({"test", "invalid", "svc", "lan", "home", "corp", "intranet", "private"})

_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
_AUTHORITY = re.compile(r"https?://(?:[^/?#]*@)?([^/?#]*)")
_HOST_AND_PORT = re.compile(r"(\[[^]]*]|[^:]*)(:[0-9]{0,5})?")


class UrlRefused(ValueError):
    """This URL may not be called, whatever it resolves to. The message says why, without the URL."""


def check_url(url: str, allow: Networks) -> None:
    """
    Raise `UrlRefused` unless this text is a URL that may be called, without resolving its host.

    An address in any spelling is checked like a resolved one. `localhost` and its aliases pass where `allow`
    covers loopback, names of the local network (`*.internal`, …) where it covers a private network.
    """
    if reason := _text_refusal(url) or refusal_of(_parse(url), allow):
        raise UrlRefused(reason)


def authority_of(url: str) -> str:
    """The host and port that a URL names, as written but in lower case; empty where it names none."""
    found = _AUTHORITY.match(url.lower())
    return found[1] if found else ""


def is_forbidden(address: Address, allow: Networks) -> str | None:
    """
    Return the class of an address to which nothing may be sent, or None if it may be called.

    An IPv4-mapped address is checked as its IPv4 address. Forms that carry an IPv4 address through a translator
    are forbidden; where `allow` covers the translator's network, the carried address is checked.
    """
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if not any(address in network for network in allow):
        return _forbidden_class(address)
    carried = _carried(address)
    return is_forbidden(carried, allow) if carried else None


def refusal_of(url: httpx.URL, allow: Networks) -> str | None:
    """Return why a parsed URL may not be called, or None if its text allows it."""
    if url.scheme not in {"http", "https"}:
        return "the URL is neither http nor https"
    if url.userinfo:
        return "the URL contains credentials"
    if url.port is not None and not 1 <= url.port <= 65535:
        return "the URL's port is not a number from 1 to 65535"
    return _host_refusal(url.raw_host.decode("ascii"), allow)


def is_internal(url: str) -> bool:
    """Whether a URL names a host that only this machine or its network knows, such as a service of a composition."""
    parsed = httpx.URL(url)
    host = parsed.host.rstrip(".")
    is_private = ("." not in host and ":" not in host) or host.rpartition(".")[2] in _PRIVATE_SUFFIXES
    return is_private or refusal_of(parsed, ()) is not None


def _text_refusal(url: str) -> str | None:
    if len(url) > MAX_URL_LENGTH:
        return f"the URL is longer than {MAX_URL_LENGTH} characters"
    if not url.isprintable() or " " in url or "\\" in url:
        return "the URL contains white space, a control character or a backslash"
    authority = re.split("[/?#]", url.partition("://")[2])[0]
    # httpx parses ports like Python integers: "8_0", "+80" and full-width digits too.
    if not _HOST_AND_PORT.fullmatch(authority.rpartition("@")[2]):
        return "the URL's port is not a number from 1 to 65535"
    return None


def _parse(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    # A lone surrogate raises UnicodeEncodeError.
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused("the URL cannot be read") from error


def _host_refusal(host: str, allow: Networks) -> str | None:
    if not host:
        return "the URL has no host"
    if "%" in host:
        return "the URL's host has a zone or percent-encoded characters"
    if ":" in host:
        return _named(is_forbidden(IPv6Address(host), allow))
    name = host.removesuffix(".")
    if not _NAME.fullmatch(name):
        return "the URL's host is not a valid name"
    if _ENDS_IN_NUMBER.fullmatch(name):
        return _number_refusal(name, allow)
    return _name_refusal(name, allow)


def _number_refusal(name: str, allow: Networks) -> str | None:
    # The C library decides what it takes for an address: short, decimal, octal and hexadecimal forms too.
    try:
        address = IPv4Address(socket.inet_aton(name))
    except OSError:
        return "the URL's host is a malformed address"
    return _named(is_forbidden(address, allow))


def _name_refusal(name: str, allow: Networks) -> str | None:
    for local, networks in _LOCAL_NAMES.items():
        if name == local or name.endswith(f".{local}"):
            admitted = any(ours.overlaps(network) for ours in allow for network in networks)
            return None if admitted else "the URL's host is a name of this machine or its network"
    return None


def _named(reason: str | None) -> str | None:
    return reason and f"the URL's host is {reason}"


def _forbidden_class(address: Address) -> str | None:
    for reason, networks in _FORBIDDEN.items():
        if any(address in network for network in networks):
            return reason
    return None if address.is_global else "not a public address"


def _carried(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.teredo[1] if address.teredo else address.sixtofour
