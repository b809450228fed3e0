"""One exchange on one connection, whatever the other side sends."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from app.egress import CappedResponse, guarded_client, http1, send_capped
from app.egress.http1 import HIGH_WATER, MAX_HEAD
from tests.egress.resolvers import LOOPBACK, SOON
from tests.support.receivers import Connection, Reply, hang, receiving


async def answer_to(*parts: bytes) -> CappedResponse:
    """What a client makes of these bytes, after which the receiver closes."""

    async def send(connection: Connection) -> None:
        await connection.read_request()
        for part in parts:
            await connection.send(part)
            await asyncio.sleep(0)
        await connection.close()

    async with receiving(connected=send) as receiver, guarded_client(LOOPBACK, SOON) as client:
        request = client.build_request("POST", receiver.url, content=b"{}")
        return await send_capped(client, request, limit=MAX_HEAD, within=SOON)


async def test_response_may_come_byte_by_byte() -> None:
    whole = b"HTTP/1.1 201 Some\r\nX-Seen: yes\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    answer = await answer_to(*(bytes([each]) for each in whole))

    assert (answer.status, answer.headers["x-seen"], answer.body) == (201, "yes", b"abc")


async def test_response_without_a_length_ends_with_the_connection() -> None:
    assert (await answer_to(b"HTTP/1.0 200 OK\r\n\r\nall of", b" it")).body == b"all of it"


@pytest.mark.parametrize("status", [100, 102, 103])
async def test_responses_before_the_response_are_skipped(status: int) -> None:
    early = f"HTTP/1.1 {status} Early\r\nX-Early: yes\r\n\r\n".encode()

    answer = await answer_to(early, early + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    assert (answer.status, answer.body, "x-early" in answer.headers) == (200, b"ok", False)


async def test_switch_of_protocols_is_an_answer_without_a_body() -> None:
    answer = await answer_to(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\nnoise")

    assert (answer.status, answer.body) == (101, b"")


async def test_what_comes_behind_a_response_is_not_read() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    for behind in (b"\r\nnoise", b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"):
        answer = await answer_to(whole + behind)
        assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nX-Half",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * MAX_HEAD,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\0Y: 1\r\n\r\n",
    ],
    ids=lambda sent: sent[-20:].hex(),
)
async def test_what_is_no_response_is_a_protocol_error(sent: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await answer_to(sent)


async def test_trailers_are_no_part_of_the_head() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = await answer_to(head + b"2\r\nok\r\n0\r\nRetry-After: 5\r\n\r\n")

    assert (answer.status, answer.body, "retry-after" in answer.headers) == (200, b"ok", False)


@pytest.mark.parametrize("line", [b"X-Trailer: " + b"x" * 1000 + b"\r\n", b"x" * 1000], ids=["many", "one without end"])
async def test_trailers_without_end_end_the_response(line: bytes) -> None:
    async def send(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-First: ")
        while True:
            await connection.send(line * 16)

    async with (
        receiving(connected=send) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
        client.stream("GET", receiver.url) as response,
    ):
        with pytest.raises(httpx.RemoteProtocolError, match="beside its body"):
            await response.aread()


async def test_large_body_in_tiny_chunks_is_read_to_its_end() -> None:
    body = b"1\r\nx\r\n" * MAX_HEAD + b"0\r\n\r\n"

    answer = await answer_to(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", body)

    assert (answer.status, len(answer.body), answer.truncated) == (200, MAX_HEAD, False)


class Writes(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        pass


async def test_nothing_is_sent_on_a_connection_that_has_broken() -> None:
    events: list[str] = []
    transport, connection = Writes(), http1.Connection()
    connection.connection_made(transport)
    connection.connection_lost(ConnectionResetError())

    async def trace(event: str, _info: object) -> None:
        events.append(event)

    with pytest.raises(httpx.ReadError):
        await connection.exchange(httpx.Request("POST", "http://host/", content=b"{}", extensions={"trace": trace}))

    assert events == []
    assert transport.written == b""


async def test_silent_receiver_is_a_read_timeout() -> None:
    async with receiving(hang) as receiver, guarded_client(LOOPBACK, timedelta(seconds=0.1)) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(receiver.url)


async def test_receiver_that_resets_is_a_read_error() -> None:
    async def reset(connection: Connection) -> None:
        await connection.read_request()
        connection.reset()

    async with receiving(connected=reset) as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(httpx.ReadError):
            await client.post(receiver.url)


async def test_body_that_is_read_slowly_stays_with_its_sender() -> None:
    body = bytes(range(256)) * (40 * HIGH_WATER // 256)
    chunks = []
    async with (
        receiving(Reply(200, body=body)) as receiver,
        guarded_client(LOOPBACK, SOON) as client,
        client.stream("GET", receiver.url) as response,
    ):
        async for chunk in response.aiter_raw():
            chunks.append(chunk)
            await asyncio.sleep(0)

    assert b"".join(chunks) == body


@pytest.mark.parametrize("value", ["a\r\nX-Forged: yes", "a\nb", "a\rb", "a\0b"])
async def test_header_that_would_be_more_than_one_is_not_sent(value: str) -> None:
    async with receiving() as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.post(receiver.url, headers={"X-Given": value})

    assert receiver.requests == []


async def test_body_that_is_no_bytes_is_not_sent() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"a"

    async with receiving() as receiver, guarded_client(LOOPBACK, SOON) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.post(receiver.url, content=parts())

    assert receiver.requests == []


async def test_connection_ends_with_its_response() -> None:
    ended = asyncio.Event()

    async def answer_and_wait(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 204 None\r\n\r\n")
        await connection.reader.read()
        ended.set()

    async with receiving(connected=answer_and_wait) as receiver, guarded_client(LOOPBACK, SOON) as client:
        assert (await client.post(receiver.url)).status_code == 204

        async with asyncio.timeout(SOON.total_seconds()):
            await ended.wait()
