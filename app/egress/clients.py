"""Opens the HTTP clients: a plain one for the upstream, a guarded one for URLs from callers and responses."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address

import httpcore
import httpx

from app import __version__
from app.egress.rules import Address, Networks, is_forbidden, refusal_of

Resolver = Callable[[str], Awaitable[Sequence[str]]]

USER_AGENT = f"Soundpost/{__version__}"
MAX_CONNECT_TIMEOUT = timedelta(seconds=5)


class EgressRefused(httpx.TransportError):
    """The guard refused a destination; nothing was sent to it. The message names the class of address."""


def plain_client(timeout: timedelta) -> httpx.AsyncClient:
    """
    Open a client for URLs that the operator chose, which are not guarded.

    `timeout` is for each single read or write. Connecting has at most five seconds of it, so that
    a connection that was never made is a connect timeout, unlike a response that was lost.
    """
    # The server may just have closed a reused connection: a submit written to it was never read, but looks like one
    # whose response was lost. Therefore each request has a new connection.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    transport = httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits)
    return _client(transport, timeout)


def upstream_client(base_url: str, api_key: str, timeout: timedelta) -> httpx.AsyncClient:
    """Open the plain client for the upstream, which sends our key to its URL."""
    client = plain_client(timeout)
    client.base_url = httpx.URL(base_url)
    client.headers["Authorization"] = f"Bearer {api_key}"
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


async def look_up(host: str) -> Sequence[str]:
    """
    Return every address of a name, as the system resolves it. Raises OSError if there is none.

    Each lookup has a daemon thread of its own. In the event loop's pool, eight names whose servers never
    answer would block every other lookup of the process for half a minute, and then its exit.
    """
    found: Future[Sequence[str]] = Future()
    threading.Thread(target=_look_up, args=(host, found), daemon=True).start()
    return await asyncio.wrap_future(found)


@cache
def _tls() -> ssl.SSLContext:
    """What every client verifies servers with: the certificates of a hundred authorities, read once."""
    return httpx.create_ssl_context(trust_env=False)


def _client(transport: httpx.AsyncBaseTransport, timeout: timedelta) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(timeout.total_seconds(), connect=min(timeout, MAX_CONNECT_TIMEOUT).total_seconds()),
        # A cookie jar would grow with every receiver, and send the cookies of one caller to another on the same host.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _GuardedTransport(httpx.AsyncHTTPTransport):
    def __init__(self, allow: Networks, resolve: Resolver, ssl_context: ssl.SSLContext) -> None:
        # The parent's constructor only creates a pool, and does not take a network backend for it.
        self._allow = allow
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            # No limit here: the workers limit their concurrency, so that one slow receiver does not block the others.
            max_connections=None,
            # An idle connection would be reused without a check of its address.
            max_keepalive_connections=0,
            network_backend=_GuardedBackend(allow, resolve),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if reason := refusal_of(request.url, self._allow):
            raise EgressRefused(reason)
        return await super().handle_async_request(request)


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a host once, checks every address, and connects to no other. Has no Unix sockets."""

    def __init__(self, allow: Networks, resolve: Resolver) -> None:
        self._allow = allow
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the parent's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._checked_addresses(host)
                return await self._dial(addresses, port, timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no connection in time") from error

    async def _checked_addresses(self, host: str) -> Sequence[Address]:
        try:
            found = await self._resolve(host)
        except OSError as error:
            raise httpcore.ConnectError("the host does not resolve") from error
        addresses = [ip_address(text) for text in dict.fromkeys(found)]
        for address in addresses:
            if reason := is_forbidden(address, self._allow):
                raise EgressRefused(f"the host resolves to {reason}")
        return addresses

    async def _dial(self, addresses: Sequence[Address], port: int, within: float | None) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("the host resolves to no address")
        for address in addresses:
            # Each address has its share of the time: otherwise one that drops packets would use all of it.
            share = within and within / len(addresses)
            try:
                return await self._network.connect_tcp(str(address), port, timeout=share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _look_up(host: str, found: Future[Sequence[str]]) -> None:
    if not found.set_running_or_notify_cancel():
        return
    try:
        addresses = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        found.set_result([str(address[0]) for *_, address in addresses])
    except OSError as error:
        found.set_exception(error)
