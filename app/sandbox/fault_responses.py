"""Answers that are not the right one: error envelopes, block pages, silence, and broken connections."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.sandbox import payloads
from app.sandbox.faults import FAULTS, FaultResponse, Group, TaskFaults
from app.sandbox.state import Sandbox

ABORT_EXTENSION = "soundpost.sever"
"""The ASGI extension, a callable, by which the sandbox's own server breaks a connection."""

_BLOCK_PAGE = "<!DOCTYPE html><html><head><title>Attention Required!</title></head><body>error code: 1010</body></html>"
_DROPS = 20


def selected_responses(
    faults: TaskFaults, group: Group, *, creates: bool = False
) -> Iterable[tuple[str, FaultResponse]]:
    """The bad answers among a task's faults that belong to this kind of call."""
    for name in faults:
        fault = FAULTS[name]
        if fault.response and fault.group == group and fault.creates == creates:
            yield name, fault.response


def envelope_response(request: Request, code: int, data: Any = None, message: str | None = None) -> Response:
    """An answer in the upstream's envelope: errors are HTTP 200 too, but for a bad key."""
    request.scope["journal_entry"].code = code
    return JSONResponse(payloads.envelope(code, data, message), status_code=401 if code == 401 else 200)


async def fault_response(request: Request, sandbox: Sandbox, bad: FaultResponse) -> Response:
    """Give the bad answer; returns once it can be sent, or when there is no one left to send it to."""
    if bad.kind == "envelope":
        request.scope["journal_entry"].code = bad.code
        return JSONResponse(payloads.envelope(bad.code, message=bad.message))
    if bad.kind == "html":
        return HTMLResponse(_BLOCK_PAGE, bad.code)
    if bad.kind == "status":
        return PlainTextResponse(f"HTTP {bad.code}", bad.code)
    if bad.kind == "empty":
        return Response(status_code=bad.code)
    if bad.kind == "hang":
        await _wait_for_disconnect_or_stop(request, sandbox)
    return await abort_connection(request, hard=True)


class NoResponse(Response):
    """For a connection that is gone: nothing is sent, and the journal shows no status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


async def abort_connection(request: Request, *, hard: bool) -> Response:
    """
    End the connection in the middle: `hard` resets it, else what was written still arrives.

    Outside the sandbox's own server the app raises ConnectionResetError instead.
    """
    cut = request.scope.get("extensions", {}).get(ABORT_EXTENSION)
    if cut is None:
        raise ConnectionResetError("cut by a fault")
    cut(hard)
    # Only after this does the server know that no answer will come, and not complain about it.
    await _wait_for_disconnect(request)
    return NoResponse()


def slow_response(sandbox: Sandbox, response: Response, seconds: float) -> Response:
    """The same answer, sent little by little over this time."""
    body = bytes(response.body)
    size = -(-len(body) // _DROPS)

    async def drops() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]
            await sandbox.sleep(seconds / _DROPS)

    headers = {"Content-Length": str(len(body))}
    return StreamingResponse(drops(), response.status_code, headers, response.media_type)


async def _wait_for_disconnect_or_stop(request: Request, sandbox: Sandbox) -> None:
    ends = [asyncio.create_task(_wait_for_disconnect(request)), asyncio.create_task(sandbox.sleep(None))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
