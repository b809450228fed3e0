"""URLs that are refused by their text alone, before any name is resolved."""

import socket
from contextlib import suppress
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.egress import Networks, UrlRefused, check_url, is_forbidden
from tests.egress.tables import FORBIDDEN_HOSTS, LOOPBACK_HOSTS, words

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PRIVATE = (ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize("host", words(FORBIDDEN_HOSTS))
@pytest.mark.parametrize("form", ["http://{}/", "https://{}:8443/hook?a=b", "HTTP://{}#@example.com"])
def test_url_with_a_forbidden_host_is_refused_in_any_spelling(form: str, host: str) -> None:
    with pytest.raises(UrlRefused, match=r"^the URL"):
        check_url(form.format(host), ())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("gopher://127.0.0.1:6379/_x", "neither http nor https"),
        ("unix:///var/run/docker.sock", "neither http nor https"),
        ("//example.com/", "neither http nor https"),
        ("example.com", "neither http nor https"),
        ("", "neither http nor https"),
        ("javascript:alert(1)", "neither http nor https"),
        ("http://", "no host"),
        ("http:///hook", "no host"),
        ("http:example.com", "no host"),
        ("http://:80/", "no host"),
        ("http://?host=example.com", "no host"),
        ("https://user:hunter2@example.com/", "credentials"),
        ("https://user@example.com/", "credentials"),
        ("https://:hunter2@example.com/", "credentials"),
        ("https://example.com@127.0.0.1/", "credentials"),
        ("https://a@b@example.com/", "credentials"),
        ("https://@127.0.0.1/", "a loopback address"),
        ("https://example.com:0/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:99999999999/", "port"),
        ("https://example.com:-1/", "port"),
        ("https://example.com:+80/", "port"),
        ("https://example.com:8_0/", "port"),
        ("https://example.com:\uff18\uff10/", "port"),
        ("https://example.com:80:80/", "port"),
        ("https://example.com:http/", "port"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("http:\\\\127.0.0.1/", "backslash"),
        ("https://example.com/a b", "white space"),
        (" https://example.com/", "white space"),
        ("https://example.com/\n", "white space"),
        ("https://exam\tple.com/", "white space"),
        ("https://example.com/\x00", "white space"),
        ("https://example.com/\x7f", "white space"),
        ("https://example.com/\u2028", "white space"),
        ("https://example.com\u200b.evil.example/", "white space"),
        ("https://example.com/\ud800", "white space"),
        ("https://example.com/" + "a" * 2029, "longer than 2048"),
        ("https://" + "a" * 64 + ".example/", "not a valid name"),
        ("https://" + "a." * 127 + "example/", "not a valid name"),
        ("https://127.0.0.1#.example.com/", "a loopback address"),
        ("https://127.0.0.1?.example.com/", "a loopback address"),
        ("https://169.254.169.254/latest/meta-data/", "a link-local address"),
        ("https://[64:ff9b::7f00:1]/", "a NAT64 address"),
        ("https://localhost/", "a name of this machine or its network"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://%6c/", "percent-encoded"),
        ("https://1.2.3.4.5/", "malformed address"),
    ],
)
def test_refusal_names_the_fault_and_repeats_nothing(url: str, reason: str) -> None:
    with pytest.raises(UrlRefused, match=reason) as refused:
        check_url(url, ())

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "http://example.com/",
        "HTTPS://EXAMPLE.COM:443/Hook",
        "https://example.com.:65535/",
        "https://example.com:/",
        "https://example.com:1/a%20b?x=http://127.0.0.1/&y=a@b:c#part",
        "https://hooks.my_company.example/x",
        "https://bücher.example/ü",
        "https://xn--bcher-kva.example/",
        "https://localhost.example.com/",
        "https://notlocalhost/",
        "https://mylocal/",
        "https://backend:8000/hook",
        "https://8.8.8.8/",
        "https://134744072/",
        "https://[2606:4700::1111]:8443/",
        "https://[::ffff:8.8.8.8]/",
        "https://127.0.0.1.nip.example/",
        "https://0x7f.example/",
        "https://example.com/" + "a" * 2028,
    ],
)
def test_ordinary_url_is_accepted(url: str) -> None:
    check_url(url, ())


@pytest.mark.parametrize(
    ("host", "allow"),
    [
        *[(host, LOOPBACK) for host in words(LOOPBACK_HOSTS)],
        *[
            (host, LOOPBACK)
            for host in ("localhost", "LOCALHOST.", "a.localhost", "ip6-localhost", "localhost.localdomain")
        ],
        *[
            (host, PRIVATE)
            for host in ("10.0.0.1", "10.1", "api.ns.svc.cluster.local", "billing.internal", "x.home.arpa")
        ],
    ],
)
def test_allowed_network_admits_its_spellings_and_names(host: str, allow: Networks) -> None:
    check_url(f"http://{host}:8080/", allow)


@pytest.mark.parametrize(
    ("host", "allow"),
    [
        *[(host, PRIVATE) for host in ("localhost", "a.localhost", "127.0.0.1", "192.168.0.1", "[::1]")],
        *[(host, LOOPBACK) for host in ("10.0.0.1", "metadata.google.internal", "printer.local", "169.254.169.254")],
    ],
)
def test_allowing_one_network_admits_no_other(host: str, allow: Networks) -> None:
    with pytest.raises(UrlRefused):
        check_url(f"http://{host}/", allow)


@given(st.text(alphabet="0123456789abcdefxX.:[]%\u3002\uff0elocal", min_size=1, max_size=24))
@example("127.1")
@example("[::1]")
def test_accepted_host_is_never_an_address_that_the_system_would_read_as_forbidden(host: str) -> None:
    try:
        check_url(f"http://{host}/", ())
    except UrlRefused:
        return

    assert all(is_forbidden(ip_address(address), ()) is None for address in _read_by_the_system(host.strip("[]")))


def _read_by_the_system(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host.rstrip(".").encode("ascii", "replace"), None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


@given(st.text())
def test_any_text_is_accepted_or_refused_but_never_breaks(text: str) -> None:
    for url in (text, f"http://{text}", f"http://{text}.example/{text}", f"http://example.com:{text}/"):
        with suppress(UrlRefused):
            check_url(url, ())
