"""Which addresses may be dialled is a table, tested from the other side."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.egress import is_forbidden
from tests.egress.tables import FORBIDDEN_ADDRESSES, PUBLIC_ADDRESSES


@pytest.mark.parametrize(
    ("address", "reason"), [(address, reason) for reason, row in FORBIDDEN_ADDRESSES.items() for address in row.split()]
)
def test_address_of_a_refused_class_is_refused_as_such(address: str, reason: str) -> None:
    assert is_forbidden(ip_address(address), ()) == reason


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES.split())
def test_public_address_may_be_dialled(address: str) -> None:
    assert is_forbidden(ip_address(address), ()) is None


@given(st.ip_addresses())
def test_nothing_that_is_not_global_may_be_dialled(address: object) -> None:
    parsed = ip_address(str(address))

    assert parsed.is_global or is_forbidden(parsed, ()) is not None


@pytest.mark.parametrize(
    ("address", "allow", "reason"),
    [
        ("127.0.0.1", "127.0.0.0/8", None),
        ("::ffff:127.0.0.1", "127.0.0.0/8", None),
        ("::1", "::1/128", None),
        ("::1", "127.0.0.0/8", "a loopback address"),
        ("10.1.2.3", "10.1.2.0/24", None),
        ("10.1.3.0", "10.1.2.0/24", "a private address"),
        ("fe80::1%eth0", "fe80::/10", None),
        ("64:ff9b::808:808", "64:ff9b::/96", None),
        ("64:ff9b::a00:1", "64:ff9b::/96", "a private address"),
        ("64:ff9b:1::a9fe:a9fe", "64:ff9b:1::/48", "a link-local address"),
        ("64:ff9b::a00:1", "10.0.0.0/8", "a NAT64 address"),
        ("2002:808:808::", "2002::/16", None),
        ("2002:c0a8:1::", "2002::/16", "a private address"),
        ("2001:0:4136:e378:8000:63bf:f7f7:f7f7", "2001::/32", None),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "2001::/32", "a loopback address"),
        ("8.8.8.8", "10.0.0.0/8", None),
    ],
)
def test_allowed_network_admits_its_addresses_but_not_what_they_carry(
    address: str, allow: str, reason: str | None
) -> None:
    assert is_forbidden(ip_address(address), [ip_network(allow)]) == reason
