"""Opens the HTTP clients: a plain one for the upstream, a guarded one for URLs from callers and responses."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any

import httpx

from app import __version__
from app.egress.http1 import Connection
from app.egress.rules import Address, Networks, is_forbidden, refusal_of
from app.observability.tracing import client_span, note_status

Resolver = Callable[[str], Awaitable[Sequence[str]]]
_Lookups = SimpleQueue[tuple[str, Future[Sequence[str]]]]

HEADERS = {"User-Agent": f"Soundpost/{__version__}", "Accept-Encoding": "identity"}
MAX_CONNECT_TIMEOUT = timedelta(seconds=5)
PORTS = {"http": 80, "https": 443}
# What threads without a lookup wait for; so many are kept.
_idle_lookups: list[_Lookups] = []
MAX_IDLE_LOOKUPS = 8


class EgressRefused(httpx.TransportError):
    """The guard refused a destination; nothing was sent to it. The message names the class of address."""


def plain_client(timeout: timedelta) -> httpx.AsyncClient:
    """
    Open a client for URLs that the operator chose, which are not guarded.

    `timeout` is for each single read or write. Connecting has at most five seconds of it, so that
    a connection that was never made is a connect timeout, unlike a response that was lost.
    """
    return _client(_Transport(look_up, _tls()), timeout)


def upstream_client(base_url: str, timeout: timedelta) -> httpx.AsyncClient:
    """Open the plain client for the upstream, for paths below its URL."""
    client = plain_client(timeout)
    client.base_url = httpx.URL(base_url)
    return client


def guarded_client(
    allow: Networks,
    timeout: timedelta,
    *,
    resolve: Resolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """
    Open a client for URLs that somebody else chose: webhooks and audio.

    Each request resolves its host once, checks every address and connects to a checked one, or raises
    `EgressRefused` before any connection is made. The Host header and TLS use the name.
    """
    return _client(_GuardedTransport(allow, resolve or look_up, ssl_context or _tls()), timeout)


def post_request(url: str, headers: Mapping[str, str], body: bytes) -> httpx.Request:
    """
    A POST by a client of this module, for a third of what the client's `build_request` costs.

    That merges headers, cookies and query parameters, of which our clients have none.
    """
    return httpx.Request("POST", url, headers={**HEADERS, **headers}, content=body)


async def look_up(host: str) -> Sequence[str]:
    """
    Return every address of a name, as the system resolves it. Raises OSError if there is none.

    A lookup waits for no other: where no thread is idle, one more is started. In the event loop's pool, eight
    names whose servers never answer would block every other lookup of the process for half a minute, and
    then its exit.
    """
    with suppress(ValueError):
        ip_address(host)
        return [host]
    found: Future[Sequence[str]] = Future()
    try:
        lookups = _idle_lookups.pop()
    except IndexError:
        lookups = SimpleQueue()
        threading.Thread(target=_look_up_each, args=(lookups,), daemon=True).start()
    lookups.put((host, found))
    return await asyncio.wrap_future(found)


@cache
def _tls() -> ssl.SSLContext:
    """What every client verifies servers with: the certificates of a hundred authorities, read once."""
    return httpx.create_ssl_context(trust_env=False)


def _client(transport: httpx.AsyncBaseTransport, timeout: timedelta) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        headers=HEADERS,
        timeout=httpx.Timeout(timeout.total_seconds(), connect=min(timeout, MAX_CONNECT_TIMEOUT).total_seconds()),
        # A cookie jar would grow with every receiver, and send the cookies of one caller to another on the same host.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _Transport(httpx.AsyncBaseTransport):
    """
    Sends each request on a connection of its own.

    The server may just have closed a reused one: a submit written to it was never read, but looks like one whose
    response was lost. There is no limit of connections: the workers limit their concurrency, so that one slow
    receiver does not block the others.
    """

    def __init__(self, resolve: Resolver, ssl_context: ssl.SSLContext) -> None:
        self._resolve, self._ssl_context = resolve, ssl_context
        ssl_context.set_alpn_protocols(["http/1.1"])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        within, host = request.extensions.get("timeout", {}).get("connect"), request.url.raw_host.decode("ascii")
        with client_span(request.method, host, request.url.port or PORTS[request.url.scheme]) as span:
            try:
                async with asyncio.timeout(within):
                    connection = await self._dial(request.url, await self._addresses(host), within)
            except TimeoutError as error:
                raise httpx.ConnectTimeout("no connection in time") from error
            response = await connection.exchange(request)
            note_status(span, response.status_code)
            return response

    async def _addresses(self, host: str) -> Sequence[Address]:
        try:
            found = await self._resolve(host)
        except OSError as error:
            raise httpx.ConnectError("the host does not resolve") from error
        return [ip_address(text) for text in dict.fromkeys(found)]

    async def _dial(self, url: httpx.URL, addresses: Sequence[Address], within: float | None) -> Connection:
        failure: httpx.TransportError = httpx.ConnectError("the host resolves to no address")
        for address in addresses:
            # Each address has its share of the time: otherwise one that drops packets would use all of it.
            share = within and within / len(addresses)
            try:
                async with asyncio.timeout(share):
                    return await self._connect(url, address)
            except ssl.SSLError as error:
                raise httpx.ConnectError(str(error)) from error
            except TimeoutError:
                failure = httpx.ConnectTimeout("no connection in time")
            except OSError as error:
                # The loops word it each in its own way.
                failure = httpx.ConnectError(os.strerror(error.errno) if error.errno else str(error))
        raise failure

    async def _connect(self, url: httpx.URL, address: Address) -> Connection:
        tls: dict[str, Any] = {}
        if url.scheme == "https":
            tls = {"ssl": self._ssl_context, "server_hostname": url.raw_host.decode("ascii")}
        port = url.port or PORTS[url.scheme]
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, str(address), port, **tls)
        return connection


class _GuardedTransport(_Transport):
    """Resolves a host once, checks every address, and connects to no other."""

    def __init__(self, allow: Networks, resolve: Resolver, ssl_context: ssl.SSLContext) -> None:
        super().__init__(resolve, ssl_context)
        self._allow = allow

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if reason := refusal_of(request.url, self._allow):
            raise EgressRefused(reason)
        return await super().handle_async_request(request)

    async def _addresses(self, host: str) -> Sequence[Address]:
        addresses = await super()._addresses(host)
        for address in addresses:
            if reason := is_forbidden(address, self._allow):
                raise EgressRefused(f"the host resolves to {reason}")
        return addresses


def _look_up_each(lookups: _Lookups) -> None:
    while True:
        host, found = lookups.get()
        if found.set_running_or_notify_cancel():
            _look_up(host, found)
        if len(_idle_lookups) >= MAX_IDLE_LOOKUPS:
            return
        _idle_lookups.append(lookups)


def _look_up(host: str, found: Future[Sequence[str]]) -> None:
    try:
        addresses = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        found.set_result([str(address[0]) for *_, address in addresses])
    except Exception as error:
        found.set_exception(error)
