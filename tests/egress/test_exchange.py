"""Every exchange ends in time, and takes no more bytes than it asked for."""

import asyncio
import gzip
import time
from datetime import timedelta
from functools import partial

import httpx
import pytest

from app.egress import (
    EgressRefused,
    ExchangeTooSlow,
    ResponseGarbled,
    ResponseTooLarge,
    guarded_client,
    send_capped,
    stream_following,
)
from tests.egress.resolvers import LOOPBACK, SOON
from tests.support.receivers import Connection, Receiver, Reply, receiving

# The same bytes at any time, so that tests have the same names in every process.
packed = partial(gzip.compress, mtime=0)

KIB = 1024
BRIEFLY = timedelta(seconds=0.3)


@pytest.mark.parametrize(
    ("size", "kept", "truncated"), [(0, 0, False), (99, 99, False), (100, 100, False), (101, 100, True)]
)
async def test_answer_is_read_up_to_the_limit(size: int, kept: int, truncated: bool) -> None:
    async with (
        receiving(Reply(201, ("X-Seen: yes",), body=b"x" * size)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
    ):
        answer = await send_capped(client, client.build_request("POST", receiver.url), limit=100, within=SOON)

    assert (answer.status, answer.headers["x-seen"], answer.body, answer.truncated) == (
        201,
        "yes",
        b"x" * kept,
        truncated,
    )


async def test_endless_answer_costs_no_more_than_its_limit() -> None:
    sent = 0

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await connection.send(b"x" * 64 * KIB)
            sent += 64 * KIB

    async with receiving(flood) as receiver, guarded_client(LOOPBACK, SOON) as client:
        answer = await send_capped(client, client.build_request("POST", receiver.url), limit=16 * KIB, within=SOON)

    assert (len(answer.body), answer.truncated) == (16 * KIB, True)
    assert sent < 32 * KIB * KIB


async def test_compressed_bomb_stays_as_small_as_it_came() -> None:
    bomb = gzip.compress(bytes(64 * KIB * KIB))
    async with (
        receiving(Reply(200, ("Content-Encoding: gzip",), body=bomb)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
    ):
        answer = await send_capped(client, client.build_request("GET", receiver.url), limit=KIB * KIB, within=SOON)

    assert answer.body == bomb


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Long: ", b""])
async def test_drip_fed_head_ends_at_the_deadline(head: bytes) -> None:
    async def drip(connection: Connection) -> None:
        await connection.send(head)
        for _ in range(60):
            await connection.send(b"H" if head else b"")
            await asyncio.sleep(0.05)

    async with receiving(drip) as receiver, guarded_client(LOOPBACK, SOON) as client:
        started = time.monotonic()
        with pytest.raises(ExchangeTooSlow, match=r"not done within 0\.3 s"):
            await send_capped(client, client.build_request("POST", receiver.url), limit=KIB, within=BRIEFLY)

        assert time.monotonic() - started < 2


@pytest.mark.parametrize("status", [200, 204, 410, 429, 503])
@pytest.mark.parametrize(
    ("head", "rest", "read"),
    [
        (b"Content-Length: 99\r\n\r\nthe first", b"", b"the first"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n9\r\nse", b"", b"firstse"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", b"nonsense\r\n", b"first"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", b"", b"first"),
        (b"Content-Length: 99\r\n\r\n", b"", b""),
    ],
)
@pytest.mark.parametrize("end", ["close", "reset", "hang"])
async def test_broken_body_only_shortens_an_answer(
    status: int, head: bytes, rest: bytes, read: bytes, end: str
) -> None:
    async def answer_badly(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(f"HTTP/1.1 {status} Some\r\nRetry-After: 7\r\n".encode() + head)
        # What came before a reset is read only if it has come before.
        await asyncio.sleep(0.05)
        await connection.send(rest)
        if end == "hang":
            await asyncio.Event().wait()
        if end == "reset":
            connection.reset()

    async with receiving(connected=answer_badly) as receiver, guarded_client(LOOPBACK, SOON) as client:
        request = client.build_request("POST", receiver.url, content=b"{}")
        # Only what hangs takes all of the time; the head must come within it on a busy machine, too.
        within = 2 * BRIEFLY if end == "hang" else SOON
        answer = await send_capped(client, request, limit=KIB, within=within)

    assert (answer.status, answer.headers["retry-after"]) == (status, "7")
    assert answer.body == (b"" if status == 204 else read)


async def test_cancellation_from_outside_stays_a_cancellation() -> None:
    asked = asyncio.Event()

    async def note(_connection: Connection) -> None:
        asked.set()

    async with receiving(note) as receiver, guarded_client(LOOPBACK, SOON) as client:
        request = client.build_request("POST", receiver.url)
        exchange = asyncio.create_task(send_capped(client, request, limit=1, within=SOON))
        await asked.wait()
        exchange.cancel()

        with pytest.raises(asyncio.CancelledError):
            await exchange


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_of_a_single_exchange_is_an_answer_like_any_other(status: int) -> None:
    async with receiving(200) as target:
        redirect = Reply(status, (f"Location: {target.url}",))
        async with receiving(redirect) as receiver, guarded_client(LOOPBACK, SOON) as client:
            request = client.build_request("POST", receiver.url, content=b"{}")
            answer = await send_capped(client, request, limit=KIB, within=SOON)

        assert (answer.status, target.connections) == (status, 0)


@pytest.mark.parametrize("location", ["http://[::1", "http:[", "http://a:b:c/", "http://\x80/"])
async def test_redirect_to_what_is_no_url_is_a_transport_error(location: str) -> None:
    async with receiving(Reply(302, (f"Location: {location}",))) as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(httpx.TransportError):
            await send_capped(client, client.build_request("POST", receiver.url), limit=KIB, within=SOON)


async def test_download_streams_what_the_last_redirect_leads_to() -> None:
    async with receiving(Reply(200, ("Content-Type: audio/mpeg",), body=b"sound")) as target:
        async with (
            receiving(Reply(302, (f"Location: {target.url_at('/a.mp3')}",))) as receiver,
            guarded_client(LOOPBACK, SOON) as client,
            stream_following(client, receiver.url, limit=KIB, within=SOON) as download,
        ):
            body = b"".join([chunk async for chunk in download.chunks])

        assert (download.status, download.headers["content-type"], body) == (200, "audio/mpeg", b"sound")
        assert receiver.requests[0].head.startswith("GET / ")
        assert target.requests[0].head.startswith("GET /a.mp3 ")


@pytest.mark.parametrize(("hops", "is_followed"), [(5, True), (6, False)])
async def test_five_redirects_are_followed_and_no_more(hops: int, is_followed: bool) -> None:
    redirects = [Reply(302, ("Location: /next",))] * hops
    async with receiving(*redirects, 200) as receiver, guarded_client(LOOPBACK, SOON) as client:
        if is_followed:
            assert await _status_of(client, receiver) == 200
        else:
            with pytest.raises(EgressRefused, match="more than 5 redirects"):
                await _status_of(client, receiver)

        assert receiver.connections == 6


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://10.0.0.1/", "a private address"),
        ("http://169.254.169.254/latest/meta-data/", "a link-local address"),
        ("http://2852039166/", "a link-local address"),
        ("http://[64:ff9b::a00:1]/", "a NAT64 address"),
        ("//10.0.0.1/x", "a private address"),
        ("http://user:hunter2@127.0.0.1/", "credentials"),
        ("https://db.internal/", "a name of this machine or its network"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("file:///etc/passwd", "neither http nor https"),
        ("gopher://127.0.0.1:6379/", "neither http nor https"),
        ("http:[", "cannot be read"),
    ],
)
async def test_every_hop_is_guarded_like_the_first(location: str, reason: str) -> None:
    async with receiving(Reply(302, (f"Location: {location}",))) as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(EgressRefused, match=reason) as refused:
            await _status_of(client, receiver)

        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://[", "http://\ud800/", "http://example.com/\ud800", "a.mp3", ""])
async def test_download_of_what_is_no_url_is_refused(url: str) -> None:
    async with guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(EgressRefused):
            async with stream_following(client, url, limit=KIB, within=SOON):
                pass


async def test_download_larger_than_its_limit_is_an_error() -> None:
    async with (
        receiving(Reply(200, body=b"x" * 101)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
    ):
        with pytest.raises(ResponseTooLarge, match="more than 100 bytes"):
            async with stream_following(client, receiver.url, limit=100, within=SOON) as download:
                assert [chunk async for chunk in download.chunks] == []


async def test_download_as_large_as_its_limit_is_whole() -> None:
    async with (
        receiving(Reply(200, body=b"x" * 100)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
        stream_following(client, receiver.url, limit=100, within=SOON) as download,
    ):
        assert b"".join([chunk async for chunk in download.chunks]) == b"x" * 100


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
async def test_coded_download_is_what_was_coded(coding: str) -> None:
    body = bytes(range(256)) * KIB
    async with (
        receiving(Reply(200, (f"Content-Encoding: {coding}",), body=packed(body))) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
        stream_following(client, receiver.url, limit=len(body), within=SOON) as download,
    ):
        assert b"".join([chunk async for chunk in download.chunks]) == body


@pytest.mark.parametrize(
    ("body", "error"), [(packed(bytes(KIB + 1)), ResponseTooLarge), (b"\x1f\x8b..", ResponseGarbled)]
)
async def test_coded_download_beyond_its_limit_or_broken_is_an_error(body: bytes, error: type[Exception]) -> None:
    async with (
        receiving(Reply(200, ("Content-Encoding: gzip",), body=body)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
    ):
        with pytest.raises(error):
            async with stream_following(client, receiver.url, limit=KIB, within=SOON) as download:
                assert [chunk async for chunk in download.chunks if chunk] == []


async def test_download_cut_short_is_an_error() -> None:
    async def cut(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
        await connection.close()

    async with receiving(cut) as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            async with stream_following(client, receiver.url, limit=100, within=SOON) as download:
                assert [chunk async for chunk in download.chunks] == [b"half"]


async def test_download_that_drips_ends_at_the_deadline() -> None:
    async def drip(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(60):
            await connection.send(b"x")
            await asyncio.sleep(0.05)

    async with receiving(drip) as receiver, guarded_client(LOOPBACK, SOON) as client:
        started = time.monotonic()
        with pytest.raises(ExchangeTooSlow):
            async with stream_following(client, receiver.url, limit=KIB, within=BRIEFLY) as download:
                assert {chunk async for chunk in download.chunks} == {b"x"}

        assert time.monotonic() - started < 2


async def test_timeout_of_the_caller_is_not_taken_for_a_slow_download() -> None:
    async with receiving(200) as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(TimeoutError, match="storage"):
            async with stream_following(client, receiver.url, limit=KIB, within=SOON):
                raise TimeoutError("storage")


async def _status_of(client: httpx.AsyncClient, receiver: Receiver) -> int:
    async with stream_following(client, receiver.url, limit=KIB, within=SOON) as download:
        return download.status
