"""The stand-in upstream as one app, and as a process of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.sandbox import api_routes, inspection, media_routes
from app.sandbox.callbacks import Courier
from app.sandbox.fault_responses import NoAnswer, enveloped
from app.sandbox.journal import JournalMiddleware
from app.sandbox.options import SandboxOptions
from app.sandbox.state import Sandbox
from app.sandbox.validation import Refused


def create_sandbox(options: SandboxOptions) -> FastAPI:
    """
    Make a stand-in upstream that remembers only what happens to this one app.

    Its lifespan must run: it opens and closes what sends the callbacks.
    """
    app = FastAPI(title="Soundpost sandbox", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.sandbox = Sandbox(options)
    app.add_middleware(JournalMiddleware, journal=app.state.sandbox.journal)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_exception_handler(ClientDisconnect, _drop)
    for room in (api_routes, media_routes, inspection):
        app.include_router(room.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Courier(app.state.sandbox) as app.state.courier:
        yield


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - what it is registered for
    return enveloped(request, error.code, message=error.message)


async def _drop(request: Request, error: Exception) -> Response:
    return NoAnswer()


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    if request.url.path.startswith("/api/"):
        return enveloped(request, 404)
    return PlainTextResponse(error.detail, error.status_code)
