"""Answers that wait: they are sent from outside the framework, whose frames would cost more than the wait itself."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_PLACE = "soundpost.lasting"


class DeferredResponse(Response):
    """What an endpoint returns to have this application answer once the endpoint, and all around it, is done."""

    def __init__(self, answer: ASGIApp) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the answer where the middleware finds it."""
        scope[_PLACE].append(self._answer)


class DeferredResponses:
    """
    Pure ASGI middleware, which sends those answers.

    Measured with 3,000 idle requests: 13 KiB each out here, 26 inside the framework.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the endpoint decide, in a scope that is not kept."""
        answers: list[ASGIApp] = []
        await self._app({**scope, _PLACE: answers}, receive, send)
        for answer in answers:
            await answer(scope, receive, send)
