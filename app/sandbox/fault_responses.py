"""The responses of faults: error envelopes, HTML pages, hanging, slow and aborted connections."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.sandbox import payloads
from app.sandbox.faults import FAULTS, FaultResponse, Group, TaskFaults
from app.sandbox.state import Sandbox

ABORT_EXTENSION = "soundpost.abort"
"""The ASGI extension, a callable, with which the sandbox's own server aborts a connection."""

_HTML_PAGE = "<!DOCTYPE html><html><head><title>Attention Required!</title></head><body>error code: 1010</body></html>"
_PIECES = 20


def selected_responses(
    faults: TaskFaults, group: Group, *, creates: bool = False
) -> Iterable[tuple[str, FaultResponse]]:
    """The faults of a task that replace the response to this kind of call, with their responses."""
    for name in faults:
        fault = FAULTS[name]
        if fault.response and fault.group == group and fault.creates == creates:
            yield name, fault.response


def envelope_response(request: Request, code: int, data: Any = None, message: str | None = None) -> Response:
    """A response in the upstream's envelope. Errors are HTTP 200 too, except for a wrong key."""
    request.scope["journal_entry"].code = code
    return JSONResponse(payloads.envelope(code, data, message), status_code=401 if code == 401 else 200)


async def make_response(request: Request, sandbox: Sandbox, fault: FaultResponse) -> Response:
    """Build a fault's response. Returns when it can be sent, or when the client has disconnected."""
    if fault.kind == "envelope":
        request.scope["journal_entry"].code = fault.code
        return JSONResponse(payloads.envelope(fault.code, message=fault.message))
    if fault.kind == "html":
        return HTMLResponse(_HTML_PAGE, fault.code)
    if fault.kind == "status":
        return PlainTextResponse(f"HTTP {fault.code}", fault.code)
    if fault.kind == "empty":
        return Response(status_code=fault.code)
    if fault.kind == "hang":
        await _wait_for_disconnect_or_stop(request, sandbox)
    return await abort_connection(request, hard=True)


class NoResponse(Response):
    """Sends nothing, for a closed connection; the journal shows no status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


async def abort_connection(request: Request, *, hard: bool) -> Response:
    """
    Close the connection before the response is complete.

    `hard` resets it at once; otherwise the client still receives the bytes written so far.
    Raises ConnectionResetError on a server other than the sandbox's own.
    """
    abort = request.scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is None:
        raise ConnectionResetError("aborted by a fault")
    abort(hard)
    # The server logs an error for a request without a response unless it has seen the disconnect.
    await _wait_for_disconnect(request)
    return NoResponse()


def slow_response(sandbox: Sandbox, response: Response, seconds: float) -> Response:
    """The same response, sent in small pieces over this many seconds."""
    body = bytes(response.body)
    size = -(-len(body) // _PIECES)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]
            await sandbox.sleep(seconds / _PIECES)

    headers = {"Content-Length": str(len(body))}
    return StreamingResponse(pieces(), response.status_code, headers, response.media_type)


async def _wait_for_disconnect_or_stop(request: Request, sandbox: Sandbox) -> None:
    waits = [asyncio.create_task(_wait_for_disconnect(request)), asyncio.create_task(sandbox.sleep(None))]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
