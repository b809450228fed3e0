"""Whatever a name resolves to, the guarded client dials checked addresses and nothing else."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from app.egress import EgressRefused, guarded_client, post_request, upstream_client
from app.egress.clients import look_up
from tests.egress.certificates import Authority
from tests.egress.resolvers import LOOPBACK, SOON, names
from tests.egress.tables import FORBIDDEN_ADDRESSES, LOOPBACK_HOSTS, words
from tests.support.receivers import Reply, full_backlog, hang, receiving

_dialled: list[tuple[str, int]] = []


def _note_connects(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.connect":
        _dialled.append(args[1][:2])  # type: ignore[index]


# A hook can never be taken out again, so that there is one for all tests.
sys.addaudithook(_note_connects)


@pytest.fixture
def dialled() -> Iterator[list[tuple[str, int]]]:
    """Every address that this process connects to during the test."""
    _dialled.clear()
    yield _dialled
    _dialled.clear()


async def test_loopback_is_never_dialled_in_any_spelling(dialled: list[tuple[str, int]]) -> None:
    async with receiving(200) as receiver, guarded_client((), SOON) as client:
        for host in [*words(LOOPBACK_HOSTS), "localhost", "a.localhost"]:
            with pytest.raises((EgressRefused, httpx.InvalidURL)):
                await client.post(receiver.url_at(host=host))

        assert receiver.connections == 0
    assert dialled == []


@pytest.mark.parametrize(
    ("address", "reason"), [(row.split()[-1], reason) for reason, row in FORBIDDEN_ADDRESSES.items()]
)
async def test_name_that_resolves_to_a_forbidden_address_is_refused_by_class(
    address: str, reason: str, dialled: list[tuple[str, int]]
) -> None:
    async with guarded_client((), SOON, resolve=names({"good.example": [address]})) as client:
        with pytest.raises(EgressRefused, match=f"^the host resolves to {reason}$"):
            await client.post("http://good.example/")

    assert dialled == []


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::ffff:10.0.0.1"]]
)
async def test_one_forbidden_address_among_several_refuses_the_name(
    addresses: list[str], dialled: list[tuple[str, int]]
) -> None:
    async with (
        receiving(200) as receiver,
        guarded_client(LOOPBACK, SOON, resolve=names({"good.example": addresses})) as client,
    ):
        with pytest.raises(EgressRefused, match="a private address"):
            await client.post(receiver.url_at(host="good.example"))

        assert receiver.connections == 0
    assert dialled == []


async def test_address_is_resolved_once(dialled: list[tuple[str, int]]) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])

    async def rebinding(_host: str) -> Sequence[str]:
        return next(answers)

    only_first = [ip_network("127.0.0.1/32")]
    async with receiving(200) as receiver, guarded_client(only_first, SOON, resolve=rebinding) as client:
        assert (await client.get(receiver.url_at(host="good.example"))).status_code == 200

        assert dialled == [("127.0.0.1", receiver.port)]
        with pytest.raises(EgressRefused, match="a loopback address"):
            await client.get(receiver.url_at(host="good.example"))
        assert receiver.connections == 1


async def test_checked_address_is_dialled_whatever_the_system_would_resolve(dialled: list[tuple[str, int]]) -> None:
    resolve = names({"localhost": ["127.0.0.2"]})
    async with receiving(host="127.0.0.2") as receiver, guarded_client(LOOPBACK, SOON, resolve=resolve) as client:
        await client.get(receiver.url_at(host="localhost"))

    assert dialled == [("127.0.0.2", receiver.port)]


async def test_each_request_is_checked_and_dialled_afresh() -> None:
    async with receiving(200) as receiver, guarded_client(LOOPBACK, SOON) as client:
        await client.get(receiver.url)
        await client.get(receiver.url)

        assert receiver.connections == 2


async def test_dead_address_gives_way_to_the_next_one() -> None:
    resolve = names({"good.example": ["127.0.0.3", "127.0.0.1"]})
    async with receiving(200) as receiver, guarded_client(LOOPBACK, SOON, resolve=resolve) as client:
        assert (await client.get(receiver.url_at(host="good.example"))).status_code == 200


async def test_address_that_swallows_packets_leaves_time_for_the_next_one() -> None:
    resolve = names({"good.example": ["127.0.0.3", "127.0.0.1"]})
    one_second = timedelta(seconds=1)
    async with receiving(200) as receiver, guarded_client(LOOPBACK, one_second, resolve=resolve) as client:
        with full_backlog("127.0.0.3", receiver.port):
            assert (await client.get(receiver.url_at(host="good.example"))).status_code == 200


async def test_name_without_addresses_is_a_connect_error() -> None:
    async with guarded_client(LOOPBACK, SOON, resolve=names({"empty.example": []})) as client:
        for host in ("empty.example", "unknown.example"):
            with pytest.raises(httpx.ConnectError, match="resolve"):
                await client.get(f"http://{host}/")


async def test_lookup_that_hangs_ends_with_the_connect_timeout() -> None:
    async def hanging(_host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async with guarded_client(LOOPBACK, timedelta(seconds=0.1), resolve=hanging) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://good.example/")


async def test_system_resolver_is_the_default() -> None:
    assert set(await look_up("localhost")) <= {"127.0.0.1", "::1"}
    assert list(await look_up("127.1")) == ["127.0.0.1"]
    with pytest.raises(OSError, match=r"known|found|provided"):
        await look_up("a..b")


async def test_lookup_does_not_queue_behind_others_that_hang() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    release = threading.Event()
    hung = loop.run_in_executor(None, release.wait)

    async with asyncio.timeout(SOON.total_seconds()):
        found = await look_up("127.0.0.1")

    assert list(found) == ["127.0.0.1"]
    release.set()
    await hung


async def test_name_stays_in_the_host_header() -> None:
    resolve = names({"good.example": ["127.0.0.1"]})
    async with receiving(200) as receiver, guarded_client(LOOPBACK, SOON, resolve=resolve) as client:
        await client.get(receiver.url_at(host="good.example"))

    assert f"\r\nHost: good.example:{receiver.port}\r\n" in receiver.requests[0].head


async def test_certificate_must_show_the_name_not_the_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    hosts = ("good.example", "other.example", "127.0.0.1")
    resolve = names({host: ["127.0.0.1"] for host in hosts})
    async with (
        receiving(200, tls=authority.server("good.example")) as receiver,
        guarded_client(LOOPBACK, SOON, resolve=resolve, ssl_context=authority.trust) as client,
    ):
        assert (await client.get(f"https://good.example:{receiver.port}/")).status_code == 200
        for host in hosts[1:]:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://{host}:{receiver.port}/")

        assert len(receiver.requests) == 1


async def test_certificate_authorities_of_the_environment_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    resolve = names({"localhost": ["127.0.0.1"]})
    async with receiving(200, tls=authority.server("localhost")) as receiver:
        url = f"https://localhost:{receiver.port}/"
        async with (
            guarded_client(LOOPBACK, SOON, resolve=resolve) as guarded,
            upstream_client(url, SOON) as plain,
        ):
            for client in (guarded, plain):
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get(url)


async def test_credentials_in_a_url_are_refused_and_not_repeated(dialled: list[tuple[str, int]]) -> None:
    async with guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(EgressRefused) as refused:
            await client.get("http://user:hunter2@127.0.0.1/")

    assert str(refused.value) == "the URL contains credentials"
    assert dialled == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async with receiving(200) as receiver:
        async with guarded_client(LOOPBACK, SOON) as client, upstream_client(receiver.url, SOON) as upstream:
            await client.get(receiver.url)
            await upstream.get("/")

        assert receiver.connections == 2


async def test_cookies_are_neither_stored_nor_sent() -> None:
    answer = Reply(200, ("Set-Cookie: session=1; Path=/",))
    async with receiving(answer) as receiver, guarded_client(LOOPBACK, SOON) as client:
        await client.get(receiver.url)
        await client.get(receiver.url)

        assert "cookie" not in receiver.requests[1].head.lower()
        assert len(client.cookies) == 0


async def test_upstream_gets_name_and_no_compression_on_a_connection_of_its_own() -> None:
    async with receiving(200) as receiver, upstream_client(receiver.url_at("/mirror"), SOON) as client:
        await client.post("/api/v1/generate/sounds", json={})
        await client.get("/api/v1/generate/credit")

        assert receiver.connections == 2
        assert receiver.requests[0].head.startswith("POST /mirror/api/v1/generate/sounds HTTP/1.1\r\n")
        for request in receiver.requests:
            assert "\r\nAccept-Encoding: identity\r\n" in request.head
            assert f"\r\nUser-Agent: Soundpost/{version('soundpost')}\r\n" in request.head


async def test_guarded_requests_carry_no_key_but_a_user_agent() -> None:
    async with receiving(200) as receiver, guarded_client(LOOPBACK, SOON) as client:
        await client.get(receiver.url)
        await client.send(post_request(receiver.url, {"X-Given": "yes"}, b"{}"))

    for request in receiver.requests:
        assert "authorization" not in request.head.lower()
        assert f"\r\nUser-Agent: Soundpost/{version('soundpost')}\r\n" in request.head
        assert "\r\nAccept-Encoding: identity\r\n" in request.head
    assert (receiver.requests[1].headers["x-given"], receiver.requests[1].body) == ("yes", b"{}")


async def test_upstream_that_accepts_and_never_responds_is_a_read_timeout() -> None:
    async with (
        receiving(hang) as receiver,
        upstream_client(receiver.url, timedelta(seconds=0.2)) as client,
    ):
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")

        assert time.monotonic() - started < 2
