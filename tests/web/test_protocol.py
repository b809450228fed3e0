"""Connections whose clients are slow, silent, greedy or gone, on a real server."""

import asyncio
import json
import resource
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.web import EdgeMiddleware, HttpProtocol
from tests.support.wait import eventually_blocking

KIB = 1024
MIB = 1024 * KIB
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Hasty(HttpProtocol):
    header_timeout = timedelta(seconds=0.5)
    body_timeout = timedelta(seconds=0.8)
    linger_timeout = timedelta(seconds=0.3)
    write_timeout = timedelta(seconds=0.4)


class Lingering(Hasty):
    body_timeout = timedelta(seconds=30)


class Crowded(Hasty):
    max_connections = 2


class ThreadedServer:
    """A server on loopback whose paths behave as they are called."""

    def __init__(self, protocol: type[HttpProtocol] = Hasty, grace: int = 1, send_buffer: int = MIB) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port: int = self.socket.getsockname()[1]
        config = uvicorn.Config(
            EdgeMiddleware(self.app),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=100,
            timeout_keep_alive=1,
            timeout_graceful_shutdown=grace,
        )
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=[[self.socket]])

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path in ANSWERS:
            await ANSWERS[request.url.path]()(scope, receive, send)
            return
        if "/wait" in request.url.path:
            await asyncio.sleep(float(request.url.query))
        names = " ".join(sorted(request.headers))
        await PlainTextResponse(f"{len(await request.body())} {names}")(scope, receive, send)

    def start(self) -> None:
        self.thread.start()
        eventually_blocking(lambda: self.uvicorn.started)

    def stop(self) -> float:
        """Stop, and return how many seconds it took."""
        began = time.monotonic()
        self.uvicorn.should_exit = True
        self.thread.join(10)
        return time.monotonic() - began

    def connections(self) -> int:
        return len(self.uvicorn.server_state.connections)


async def megabytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"a" * MIB


ANSWERS: dict[str, Callable[[], Response]] = {
    "/medium": lambda: Response(b"a" * 40 * KIB),
    "/stream": lambda: StreamingResponse(megabytes(1)),
    "/large": lambda: StreamingResponse(megabytes(100)),
}


class Client:
    """A client that keeps to no rule."""

    def __init__(self, server: ThreadedServer, receive_buffer: int = MIB) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect(("127.0.0.1", server.port))
        self.unread = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes) -> None:
        """Send a byte every 50 ms, until there is an answer."""
        for byte in data:
            self.send(bytes([byte]))
            if self.has_news(0.05):
                return

    def flood(self, data: bytes, times: int) -> int:
        """Send until there is an answer or an end, and return how many bytes that took."""
        sent = 0
        for _ in range(times):
            try:
                self.send(data)
            except OSError:
                break
            sent += len(data)
            if self.has_news(0):
                break
        return sent

    def has_news(self, seconds: float) -> bool:
        return bool(select.select([self.socket], [], [], seconds)[0])

    def answer(self) -> tuple[int, bytes]:
        """Read one answer: its status and its body."""
        while b"\r\n\r\n" not in self.unread:
            self.unread += self._receive()
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(self.unread) < length:
            self.unread += self._receive()
        body, self.unread = self.unread[:length], self.unread[length:]
        return int(head.split()[1]), body

    def problem(self) -> str:
        """Read one answer that must be a problem, and return its slug."""
        status, body = self.answer()
        document = json.loads(body)
        assert document["status"] == status
        return str(document["type"]).removeprefix("/problems/")

    def rest(self) -> bytes:
        """Everything that the server sends until it closes."""
        received = bytearray()
        while data := self.socket.recv(64 * KIB):
            received += data
        return bytes(received)

    def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing more to say."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> bytes:
        data = self.socket.recv(64 * KIB)
        if not data:
            raise EOFError(self.unread)
        return data


@contextmanager
def started(server: ThreadedServer) -> Iterator[ThreadedServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedServer]:
    with started(ThreadedServer()) as server:
        yield server


def test_a_silent_client_is_timed_out(server: ThreadedServer) -> None:
    began = time.monotonic()
    with Client(server) as client:
        assert client.problem() == "request-timeout"
        assert client.is_closed()
    assert 0.4 < time.monotonic() - began < 2


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
def test_headers_that_do_not_end_are_timed_out(server: ThreadedServer, start: bytes) -> None:
    with Client(server) as client:
        client.send(start)

        assert client.problem() == "request-timeout"
        assert client.is_closed()


def test_a_header_now_and_then_does_not_extend_the_deadline(server: ThreadedServer) -> None:
    began = time.monotonic()
    with Client(server) as client:
        client.drip(b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 200)

        assert client.problem() == "request-timeout"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("start", [b"GET / HT", b"\r\n"])
def test_a_later_request_has_a_deadline_too(server: ThreadedServer, start: bytes) -> None:
    with Client(server) as client:
        client.send(GET)
        assert client.answer()[0] == 200
        client.send(start)

        assert client.problem() == "request-timeout"
        assert client.is_closed()


def test_empty_lines_hold_no_connection(server: ThreadedServer) -> None:
    began = time.monotonic()
    with Client(server) as client:
        client.send(GET)
        client.answer()
        client.drip(b"\r\n" * 100)

        assert client.problem() == "request-timeout"
    assert time.monotonic() - began < 2


def test_an_idle_connection_is_closed_without_a_response(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(GET)
        client.answer()

        assert client.is_closed()


@pytest.mark.parametrize("start", [POST + b"Content-Length: 9\r\n\r\n{", CHUNKED, CHUNKED + b"5\r\n{"])
def test_a_body_that_does_not_end_is_timed_out(server: ThreadedServer, start: bytes) -> None:
    with Client(server) as client:
        client.send(start)

        assert client.problem() == "request-timeout"
        assert client.is_closed()


def test_a_byte_now_and_then_does_not_extend_the_deadline_of_a_body(server: ThreadedServer) -> None:
    began = time.monotonic()
    with Client(server) as client:
        client.send(POST + b"Content-Length: 1000\r\n\r\n")
        client.drip(b" " * 200)

        assert client.problem() == "request-timeout"
    assert time.monotonic() - began < 2


def test_a_slow_answer_is_not_the_clients_fault(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(GET.replace(b"/ ", b"/wait?1.2 "))

        assert client.answer()[0] == 200


def test_a_body_that_we_do_not_take_yet_is_not_the_clients_fault(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(b"POST /callbacks/wait?1.2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        sender = threading.Thread(target=client.send, args=[b"a" * 1_000_000])
        sender.start()

        assert client.answer() == (200, b"1000000 content-length host")
        sender.join()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(200)) + b"\r\n",
        b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 16 * KIB + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 17 * KIB,
    ],
)
def test_a_large_head_is_a_431(server: ThreadedServer, head: bytes) -> None:
    with Client(server) as client:
        client.send(head)

        assert client.problem() == "headers-too-large"
        assert client.is_closed()


@pytest.mark.parametrize("size", [16 * KIB, 17 * KIB, 16 * KIB - 20])
@pytest.mark.parametrize("rest", [b"", b" HTTP/1.1\r\nHost: example.com\r\nX: y\r\n\r\n"])
def test_long_target_is_a_414(server: ThreadedServer, size: int, rest: bytes) -> None:
    with Client(server) as client:
        client.send(b"GET /" + b"a" * size + rest)

        assert client.problem() == ("uri-too-long" if rest or size > 16 * KIB - 6 else "request-timeout")
        assert client.is_closed()


def test_a_head_may_be_sixteen_kilobytes(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (16 * KIB - 30) + b"\r\n\r\n")

        assert client.answer() == (200, b"0 host x-long")


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nX-Trailer: ",
        CHUNKED + b"2;extension=",
    ],
)
def test_a_flood_before_or_after_a_body_is_cut_off_early(server: ThreadedServer, start: bytes) -> None:
    with Client(server) as client:
        client.send(start)

        assert client.flood(b"a" * 64 * KIB, times=1000) < 16 * MIB
        assert client.problem() in ("headers-too-large", "uri-too-long", "unreadable-request")
        assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(b"".join(GET.replace(b"Host", b"X-%d: y\r\nHost" % number) for number in range(9)))

        assert [client.answer()[1] for _ in range(9)] == [b"0 host x-%d" % number for number in range(9)]


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
def test_any_number_of_pipelined_requests_is_answered(server: ThreadedServer, body: bytes) -> None:
    with Client(server) as client:
        client.send((GET + POST + body) * 100)

        answers = [client.answer() for _ in range(200)]
    assert [(status, content[:2]) for status, content in answers] == [(200, b"0 "), (200, b"2 ")] * 100


def test_flood_of_pipelined_requests_is_not_read_before_its_turn(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.socket.settimeout(0.5)
        # The client is gone then; a connection that is not read shows that when it is written to.
        client.send(GET.replace(b"/ ", b"/wait?1.5 "))

        with pytest.raises(TimeoutError):
            client.send(GET * 2_000_000)


def test_half_a_request_behind_another_has_its_deadline_after_the_response(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(GET.replace(b"/ ", b"/wait?0.7 ") + b"GET / HT")

        assert client.answer()[0] == 200
        assert client.problem() == "request-timeout"


@pytest.mark.parametrize(
    ("request_bytes", "slug"),
    [
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "unsupported-media-type"),
        (POST + b"Content-Length: 2\r\n\r\n{!", "unreadable-body"),
        (POST + b"Content-Length: 70000\r\n\r\n" + b" " * 70_000, "content-too-large"),
        (CHUNKED + b"11170\r\n" + b" " * 70_000 + b"\r\n0\r\n\r\n", "content-too-large"),
        (GET.replace(b"/ ", b"/%00 "), "not-found"),
    ],
)
def test_a_connection_serves_on_after_an_error(server: ThreadedServer, request_bytes: bytes, slug: str) -> None:
    with Client(server) as client:
        for _ in range(3):
            client.send(request_bytes)
            assert client.problem() == slug

        client.send(POST + b"Content-Length: 2\r\n\r\n{}")
        assert client.answer() == (200, b"2 content-length content-type host")


@pytest.mark.parametrize("start", [POST + b"Content-Length: 104857600\r\n\r\n", CHUNKED + b"6400000\r\n"])
def test_a_hundred_megabytes_are_refused_while_they_come(server: ThreadedServer, start: bytes) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Client(server) as client:
        client.send(start)

        sent = client.flood(b" " * 64 * KIB, times=1600)
        assert sent < 16 * MIB
        assert client.problem() == "content-too-large"
        client.flood(b" " * 64 * KIB, times=1600 - sent // (64 * KIB))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20 * KIB


def test_a_client_that_goes_on_after_its_refusal_is_left() -> None:
    with started(ThreadedServer(Lingering)) as server, Client(server) as client:
        began = time.monotonic()
        client.send(POST + b"Content-Length: 100000000\r\n\r\n{")
        assert client.problem() == "content-too-large"
        client.drip(b" " * 200)

        assert client.is_closed()
        assert time.monotonic() - began < 2


def test_a_client_that_asks_first_sends_no_body_in_vain(server: ThreadedServer) -> None:
    ask = POST + b"Expect: 100-continue\r\n"
    with Client(server) as client:
        client.send(ask + b"Content-Length: 2\r\n\r\n")
        assert client.answer() == (100, b"")
        client.send(b"{}")
        assert client.answer()[0] == 200

        client.send(ask + b"Content-Length: 100000\r\n\r\n")
        assert client.problem() == "content-too-large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET.replace(b"/ ", b"/large "),
        GET.replace(b"/ ", b"/medium "),
        GET.replace(b"/ ", b"/medium ").replace(b"Host: x", b"Host: x\r\nConnection: close"),
    ],
)
def test_a_client_that_does_not_read_is_left(request_bytes: bytes) -> None:
    with started(ThreadedServer(send_buffer=4 * KIB)) as server, Client(server, receive_buffer=4 * KIB) as client:
        client.send(request_bytes)
        eventually_blocking(lambda: server.connections() == 1)

        eventually_blocking(lambda: server.connections() == 0, 3)


def test_a_client_that_reads_gets_all(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(GET.replace(b"/ ", b"/large "))
        received = 0
        while received < 100 * MIB:
            received += len(client.socket.recv(MIB))


def test_connections_beyond_the_cap_are_turned_away() -> None:
    with started(ThreadedServer(Crowded)) as server, Client(server) as first, Client(server):
        eventually_blocking(lambda: server.connections() == 2)
        with Client(server) as third:
            assert third.problem() == "too-many-connections"
            assert third.is_closed()

        first.send(GET)
        assert first.answer()[0] == 200


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /?\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        POST + b"Content-Length: 1, 1\r\n\r\n",
        POST + b"Content-Length: +1\r\n\r\n",
        POST + b"Content-Length: 0x1\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n",
        POST + b"Content-Length:\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\n{}\n0\n\n",
        CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n",
        CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nX : a\r\n\r\n",
    ],
)
def test_broken_http_is_a_400_problem(server: ThreadedServer, junk: bytes) -> None:
    with Client(server) as client:
        client.send(junk)

        assert client.problem() == "unreadable-request"
        assert client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n",
        b"GET / HTTP/1.1\r\nHost: x y\r\n",
        b"GET / HTTP/1.1\r\nHost: x/y\r\n",
        b"GET / HTTP/1.1\r\nHost: u@x\r\n",
        b"GET / HTTP/1.1\r\nHost: x:ab\r\n",
        b"GET / HTTP/1.1\r\nHost: a%zz\r\n",
        b"GET / HTTP/1.1\r\nHost: [1:2]\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n",
        b"GET / HTTP/0.9\r\nHost: x\r\n",
        b"GET /\r\n",
        b"GET /#a HTTP/1.1\r\nHost: x\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n",
        b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n",
        b"GET http://u:p@x/ HTTP/1.1\r\nHost: x\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: x\r\n",
        b"GET / RTSP/1.0\r\nHost: x\r\n",
        b"OPTIONS * RTSP/1.0\r\nHost: x\r\n",
        b"DESCRIBE / RTSP/1.0\r\nHost: x\r\n",
        b"SOURCE / ICE/1.0\r\nHost: x\r\n",
        b"GET / ICE/1.1\r\nHost: x\r\n",
        b"GET / http/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.10\r\nHost: x\r\n",
        b"GET / HTTP/01.1\r\nHost: x\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: x\r\n",
        b" GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n",
        b"GET x:80 HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n",
        b"GET / HTTP/1.1\rHost: x\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: a\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX(y): a\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        POST + b"Transfer-Encoding: gzip\r\n",
        POST + b"Transfer-Encoding: identity\r\n",
        POST + b"Transfer-Encoding:\r\n",
        POST + b"Transfer-Encoding: chunked, gzip\r\n",
        POST + b"Transfer-Encoding: chunked, chunked\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        POST + b"Transfer-Encoding: chunked;a=b\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n",
        POST + b"Transfer-Encoding: @, chunked\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 2\r\n",
    ],
)
def test_head_that_the_rfc_wants_refused_is_a_400(server: ThreadedServer, head: bytes) -> None:
    with Client(server) as client:
        client.send(head + b"\r\n")

        assert client.problem() == "unreadable-request"
        assert client.is_closed()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET HTTPS://x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x?a=b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]:8000 \t\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::ffff:1.2.3.4]\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [v1.a:b]:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: t%C3%B6ne_1.example.:80\r\n\r\n",
        POST + b"Content-Length: 2 \r\n\r\n{}",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"\r\n\r\n" + GET,
        POST + b"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b'002;a;b=c;d="e"\r\n{}\r\n0;f\r\n\r\n',
        CHUNKED + b"2\r\n{}\r\n0\r\nX: a\r\n\r\n",
    ],
)
def test_head_that_the_rfc_wants_taken_is_taken(server: ThreadedServer, request_bytes: bytes) -> None:
    with Client(server) as client:
        client.send(request_bytes)

        assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "codings",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: GZIP , Chunked\r\n",
        b"Transfer-Encoding: x;q=1\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_transfer_coding_that_is_not_known_is_a_501(server: ThreadedServer, codings: bytes) -> None:
    with Client(server) as client:
        client.send(POST + codings + b"\r\n")

        assert client.problem() == "unknown-transfer-coding"
        assert client.is_closed()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_request_means_the_same_wherever_its_segments_end(server: ThreadedServer, size: int) -> None:
    offer = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n{}\r\n"
    requests = b"\r\n" + GET + offer + CHUNKED + b"4\r\n{}\r\n\r\n0\r\n\r\n" + GET
    with Client(server) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(requests), size):
            client.send(requests[start : start + size])
            time.sleep(0.001)

        assert [client.answer()[1][:2] for _ in range(4)] == [b"0 ", b"4 ", b"4 ", b"0 "]


def test_response_to_head_has_no_body_though_the_head_is_refused(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(b"HEAD / HTTP/1.1\r\n\r\n")

        head, _, body = client.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body == b""


def test_client_of_http_1_0_is_not_told_to_continue(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n")
        client.send(b"Content-Length: 2\r\n\r\n{}")

        assert client.answer()[0] == 200


@pytest.mark.parametrize("path", ["/stream", "/medium"])
def test_client_of_http_1_0_gets_no_chunks_and_the_end_of_its_connection(server: ThreadedServer, path: str) -> None:
    with Client(server) as client:
        client.send(f"GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        head, _, body = client.rest().partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"a" * (MIB if path == "/stream" else 40 * KIB)


def test_trailers_do_not_become_headers(server: ThreadedServer) -> None:
    with Client(server) as client:
        client.send(CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n")

        assert client.answer() == (200, b"2 content-type host transfer-encoding")


def test_an_offer_to_upgrade_does_not_cost_the_body(server: ThreadedServer) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    with Client(server) as client:
        for _ in range(2):
            client.send(POST + offer + b"Content-Length: 2\r\n\r\n{}")

            assert client.answer()[1].startswith(b"2 ")


OPENINGS = {
    "silent": b"",
    "half headers": b"GET / HTTP/1.1\r\nHo",
    "half body": POST + b"Content-Length: 9\r\n\r\n{",
    "half of a refused body": POST + b"Content-Length: 100000000\r\n\r\n{",
    "idle": GET,
    "half of a later request": GET + b"GET / HT",
    "waiting": GET.replace(b"/ ", b"/wait?60 "),
    "pipelined": GET.replace(b"/ ", b"/wait?60 ") + POST + b"Content-Length: 9\r\n\r\n{",
    "not reading": GET.replace(b"/ ", b"/large "),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=list(OPENINGS))
def test_the_stop_is_in_time_whatever_clients_do(opening: bytes) -> None:
    server = ThreadedServer(HttpProtocol)
    server.start()
    with Client(server) as client:
        client.send(opening)
        eventually_blocking(lambda: server.connections() == 1)

        assert server.stop() < 4
    assert not server.thread.is_alive()


def test_a_half_sent_request_is_answered_at_once_when_the_server_stops() -> None:
    server = ThreadedServer(HttpProtocol, grace=5)
    server.start()
    with Client(server) as client:
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert client.answer()[0] == 100
        client.send(b"{")

        assert server.stop() < 2
        assert client.problem() == "shutting-down"


def test_a_request_that_outlasts_the_grace_is_answered_when_the_server_stops() -> None:
    server = ThreadedServer(HttpProtocol)
    server.start()
    with Client(server) as client:
        client.send(GET.replace(b"/ ", b"/wait?60 "))
        eventually_blocking(lambda: len(server.uvicorn.server_state.tasks) == 1)
        server.stop()

        assert client.problem() == "shutting-down"


def test_many_slow_clients_neither_hinder_the_others_nor_stay(server: ThreadedServer) -> None:
    with ExitStack() as stack:
        for start in [b"", b"GET / HT", POST + b"Content-Length: 9\r\n\r\n{"] * 30:
            stack.enter_context(Client(server)).send(start)

        with Client(server) as client:
            client.send(GET)
            assert client.answer()[0] == 200
    eventually_blocking(lambda: server.connections() == 0)


def test_worker_processes_find_the_protocol_by_its_name(server: ThreadedServer) -> None:
    config = uvicorn.Config(server.app, http="app.web:HttpProtocol", log_config=None)
    config.load()

    assert config.http_protocol_class is HttpProtocol


FIELDS = st.tuples(
    st.sampled_from([b"Host", b"Expect", b"Upgrade", b"Connection", b"X-Forwarded-For", b"X-Forwarded-Proto"]),
    st.binary(max_size=9) | st.sampled_from([b"close", b"upgrade", b"websocket", b"h2c", b"100-continue", b"[::1"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD"]),
    target=st.sampled_from([b"/", b"*", b"//", b"http://x/", b"/?"]).flatmap(
        lambda start: st.binary(max_size=9).map(lambda rest: start + rest)
    ),
    fields=st.lists(FIELDS, max_size=3),
    body=st.binary(max_size=20),
)
def test_no_bytes_on_the_wire_are_answered_with_a_5xx(
    server: ThreadedServer, method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    head = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    with Client(server) as client, suppress(EOFError):
        client.send(
            method
            + b" "
            + target
            + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
            + head
            + b"\r\n"
            + body
        )

        assert client.answer()[0] < 500
