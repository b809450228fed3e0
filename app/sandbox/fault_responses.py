"""Answers that are not the right one: error envelopes, block pages, silence, and broken connections."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.sandbox import payloads
from app.sandbox.faults import FAULTS, BadAnswer, Chosen, Group
from app.sandbox.state import Sandbox

SEVER = "soundpost.sever"
"""The ASGI extension, a callable, by which the sandbox's own server breaks a connection."""

_BLOCK_PAGE = "<!DOCTYPE html><html><head><title>Attention Required!</title></head><body>error code: 1010</body></html>"
_DROPS = 20


def asked(faults: Chosen, group: Group, *, creates: bool = False) -> Iterable[tuple[str, BadAnswer]]:
    """The bad answers among a task's faults that belong to this kind of call."""
    for name in faults:
        fault = FAULTS[name]
        if fault.instead and fault.group == group and fault.creates == creates:
            yield name, fault.instead


def enveloped(request: Request, code: int, data: Any = None, message: str | None = None) -> Response:
    """An answer in the upstream's envelope: errors are HTTP 200 too, but for a bad key."""
    request.scope["arrival"].code = code
    return JSONResponse(payloads.envelope(code, data, message), status_code=401 if code == 401 else 200)


async def answer_badly(request: Request, sandbox: Sandbox, bad: BadAnswer) -> Response:
    """Give the bad answer; returns once it can be sent, or when there is no one left to send it to."""
    if bad.how == "envelope":
        request.scope["arrival"].code = bad.code
        return JSONResponse(payloads.envelope(bad.code, message=bad.message))
    if bad.how == "page":
        return HTMLResponse(_BLOCK_PAGE, bad.code)
    if bad.how == "status":
        return PlainTextResponse(f"HTTP {bad.code}", bad.code)
    if bad.how == "empty":
        return Response(status_code=bad.code)
    if bad.how == "hang":
        await _wait_for_the_end(request, sandbox)
    return await sever(request, hard=True)


class NoAnswer(Response):
    """For a connection that is gone: nothing is sent, and the journal shows no status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


async def sever(request: Request, *, hard: bool) -> Response:
    """
    End the connection in the middle: `hard` resets it, else what was written still arrives.

    Outside the sandbox's own server the app raises ConnectionResetError instead.
    """
    cut = request.scope.get("extensions", {}).get(SEVER)
    if cut is None:
        raise ConnectionResetError("cut by a fault")
    cut(hard)
    # Only after this does the server know that no answer will come, and not complain about it.
    await _disconnected(request)
    return NoAnswer()


def in_drops(sandbox: Sandbox, response: Response, seconds: float) -> Response:
    """The same answer, sent little by little over this time."""
    body = bytes(response.body)
    size = -(-len(body) // _DROPS)

    async def drops() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]
            await sandbox.sleep(seconds / _DROPS)

    headers = {"Content-Length": str(len(body))}
    return StreamingResponse(drops(), response.status_code, headers, response.media_type)


async def _wait_for_the_end(request: Request, sandbox: Sandbox) -> None:
    ends = [asyncio.create_task(_disconnected(request)), asyncio.create_task(sandbox.sleep(None))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
