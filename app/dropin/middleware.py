"""Puts every error response below the vendor's paths into the vendor's envelope."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BudgetExceeded
from app.web.problems import MEDIA_TYPE

PREFIX = "/api/v1/"

# The vendor's code for each of our statuses. All others are 500.
CODES: Mapping[int, int] = {
    400: 400,
    401: 401,
    # A key without the scope that is needed is to a client of the vendor's no better than a wrong one.
    403: 401,
    404: 404,
    405: 404,
    413: 413,
    415: 400,
    422: 400,
    402: 429,
    429: 405,
    503: 455,
}


class VendorEnvelopeMiddleware:
    """
    Turns problems into the vendor's envelope: HTTP 200 and the code in the body, but 401 in both.

    Pure ASGI middleware, so that it is outside of everything that can respond with a problem.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the inner application's awaitable: a frame of our own would cost memory for each waiting caller."""
        is_dropin = scope["type"] == "http" and scope["path"].startswith(PREFIX)
        return self._app(scope, receive, _EnvelopeSender(send).send if is_dropin else send)


class _EnvelopeSender:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_problem(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_envelope(self._start)

    async def _send_envelope(self, start: Message) -> None:
        envelope = envelope_of(json.loads(self._body))
        body = json.dumps(envelope, ensure_ascii=False).encode()
        status = 401 if envelope["code"] == 401 else 200
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"], headers["content-length"] = "application/json", str(len(body))
        await self._send({"type": start["type"], "status": status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def envelope_of(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return a problem as the vendor's envelope: the vendor's code and a message about the first error."""
    message = problem.get("detail", problem["title"])
    if problem["status"] == BudgetExceeded.status:
        # In the vendor's words; what else is possible here, as to hold the order, is not there.
        message = f"Insufficient credits: {problem['title']}"
    for error in problem.get("errors", [])[:1]:
        field = error["pointer"].removeprefix("#/").replace("query/", "")
        message = f"{field}: {error['detail']}" if field != "#" else error["detail"]
    return {"code": CODES.get(problem["status"], 500), "msg": message, "data": None}


def _is_problem(start: Message) -> bool:
    return MutableHeaders(raw=start["headers"]).get("content-type") == MEDIA_TYPE
