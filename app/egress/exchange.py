"""One HTTP exchange, limited in time and size."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx

from app.egress.clients import EgressRefused
from app.egress.codings import CodingBroken, Inflater, codings_of

MAX_REDIRECTS = 5


class ExchangeTooSlow(httpx.TimeoutException):
    """The exchange did not end in time. Whether the other side acted on the request is unknown."""


class ResponseTooLarge(httpx.TransportError):
    """The body of the response is larger than the limit."""


class ResponseGarbled(httpx.TransportError):
    """The body of the answer is not what its content coding makes."""


@dataclass(frozen=True, slots=True)
class CappedResponse:
    """A response with the first bytes of its body, never decompressed; `truncated` when more than the limit came."""

    status: int
    headers: httpx.Headers
    body: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class Download:
    """
    A response whose body is not read yet.

    `chunks` has gzip and deflate undone, and raises `ResponseTooLarge` beyond the limit, and `ResponseGarbled`.
    """

    status: int
    headers: httpx.Headers
    chunks: AsyncIterator[bytes]


async def send_capped(
    client: httpx.AsyncClient, request: httpx.Request, *, limit: int, within: timedelta
) -> CappedResponse:
    """
    Send a request, without following redirects, and read at most `limit` bytes of the response's body.

    A body that is cut, broken or not here `within` this time is returned as far as it came: the status
    and the headers are the receiver's answer. Raises `httpx.TransportError` where there is no such answer:
    among others `EgressRefused`, and `ExchangeTooSlow` when the head does not come `within` this time.
    """
    response: httpx.Response | None = None
    body = bytearray()
    try:
        async with _deadline(within):
            response = await _send(client, request)
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > limit:
                    break
    except httpx.TransportError:
        if response is None:
            raise
    finally:
        if response is not None:
            await response.aclose()
    return CappedResponse(response.status_code, response.headers, bytes(body[:limit]), len(body) > limit)


@asynccontextmanager
async def stream_following(
    client: httpx.AsyncClient, url: str, *, limit: int, within: timedelta
) -> AsyncIterator[Download]:
    """
    GET a URL and follow at most MAX_REDIRECTS redirects, each guarded like the first request.

    Raises as `send_capped` does. The time includes what the caller does with the chunks.
    """
    async with _deadline(within):
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
async def _deadline(within: timedelta) -> AsyncIterator[None]:
    deadline = asyncio.timeout(within.total_seconds())
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise ExchangeTooSlow(f"not done within {within.total_seconds():g} s") from error


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    with _refused_unless_readable():
        # httpx parses the Location of a redirect although it does not follow it.
        return await client.send(request, stream=True, follow_redirects=False)


@contextmanager
def _refused_unless_readable() -> Iterator[None]:
    # For a URL that it cannot parse, httpx raises InvalidURL or any ValueError.
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        raise EgressRefused("the URL, or one that it redirects to, cannot be read") from error


async def _capped_chunks(response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in decoded_chunks(response):
        size += len(chunk)
        if size > limit:
            raise ResponseTooLarge(f"more than {limit} bytes")
        yield chunk


async def decoded_chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """
    The body with gzip and deflate undone, in small pieces; under another coding, as it was sent.

    Raises ResponseGarbled. What a piece costs does not depend on how well the body was compressed.
    """
    stages = [Inflater(coding) for coding in codings_of(response.headers.get("content-encoding", "")) or ()]
    try:
        async for chunk in response.aiter_raw():
            for piece in _through(stages, chunk):
                yield piece
                await asyncio.sleep(0)
        for number, stage in enumerate(stages, 1):
            for piece in _through(stages[number:], stage.finish()):
                yield piece
    except CodingBroken as error:
        raise ResponseGarbled(str(error)) from error


def _through(stages: Sequence[Inflater], chunk: bytes) -> Iterator[bytes]:
    if not stages:
        yield chunk
        return
    for piece in stages[0].feed(chunk):
        yield from _through(stages[1:], piece)
