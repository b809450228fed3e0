"""Makes one exchange, with an end to its time and to its size."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx

from app.egress.clients import EgressRefused

MAX_REDIRECTS = 5


class ExchangeTooSlow(httpx.TimeoutException):
    """The whole exchange took longer than it was given. Whether the other side acted on it is unknown."""


class AnswerTooLarge(httpx.TransportError):
    """The answer is larger than what was asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the body as it was on the wire, never decompressed, and whether more of it was left unread."""

    status: int
    headers: httpx.Headers
    body: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class Download:
    """An answer whose body is still to be read. `chunks` raises `AnswerTooLarge` beyond its limit."""

    status: int
    headers: httpx.Headers
    chunks: AsyncIterator[bytes]


async def send_capped(client: httpx.AsyncClient, request: httpx.Request, *, limit: int, within: timedelta) -> Answer:
    """
    Make one exchange, redirects not followed, reading at most `limit` bytes of the answer's body.

    Raises `httpx.TransportError`: among them `EgressRefused`, and `ExchangeTooSlow` when all of it,
    from lookup to last byte, is not done within the time.
    """
    async with _wall_clock(within):
        response = await _send(client, request)
        async with aclosing(response):
            body, truncated = await _read(response, limit)
    return Answer(response.status_code, response.headers, body, truncated)


@asynccontextmanager
async def stream_following(
    client: httpx.AsyncClient, url: str, *, limit: int, within: timedelta
) -> AsyncIterator[Download]:
    """
    Get a URL, following at most five redirects, each of them guarded like the first.

    Raises as `send_capped` does. The time includes what the caller does with the chunks.
    """
    async with _wall_clock(within):
        with _refused_unless_readable():
            request = client.build_request("GET", url)
        for _ in range(1 + MAX_REDIRECTS):
            response = await _send(client, request)
            async with aclosing(response):
                if response.next_request is None:
                    yield Download(response.status_code, response.headers, _capped_chunks(response, limit))
                    return
                request = response.next_request
        raise EgressRefused(f"more than {MAX_REDIRECTS} redirects")


@asynccontextmanager
async def _wall_clock(within: timedelta) -> AsyncIterator[None]:
    clock = asyncio.timeout(within.total_seconds())
    try:
        async with clock:
            yield
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise ExchangeTooSlow(f"not done within {within.total_seconds():g} s") from error


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    with _refused_unless_readable():
        # This reads the URL of a redirect too, though it does not follow it.
        return await client.send(request, stream=True, follow_redirects=False)


@contextmanager
def _refused_unless_readable() -> Iterator[None]:
    # For some URLs that it cannot read, httpx raises its InvalidURL, for others whatever ValueError it met.
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        raise EgressRefused("the URL, or one that it redirects to, cannot be read") from error


async def _read(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            break
    return bytes(body[:limit]), len(body) > limit


async def _capped_chunks(response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > limit:
            raise AnswerTooLarge(f"more than {limit} bytes")
        yield chunk
