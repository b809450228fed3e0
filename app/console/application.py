"""The console as an application of its own: its pages, its files, and its errors as pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.telemetry import TelemetryConfig
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from app.callbacks.service import CallbackService
from app.clips.waveform import Waveforms
from app.config import Settings
from app.console import sign_in, task_list, task_page, webhook_pages
from app.console.accounts import pages as accounts
from app.console.assets import serve_asset
from app.console.live import LiveStreams
from app.console.mount import PATH
from app.console.rendering import Pages
from app.console.session import Refused, Sessions, SignInNeeded
from app.console.sign_in import FailedSignIns
from app.console.task_list import TaskLists
from app.console.task_page import TaskPages
from app.database.engine import Database
from app.errors import AppError, InternalError
from app.keyring import Keyring
from app.storage.store import Storage
from app.tasks.service import TaskService
from app.tasks.waiting import Waiters
from app.web.exception_handlers import as_app_error
from app.web.provided import provide
from app.web.routing import Router


def create_console(services: Mapping[type, Any]) -> FastAPI:
    """Build the console on the long-lived objects of the application that it is a part of."""
    settings: Settings = services[Settings]
    # Its requests are the application's, which tells of them.
    silent: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    console = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, telemetry=silent)
    pages = Pages(settings)
    own = (
        pages,
        Sessions(services[Keyring], services[Database], settings),
        FailedSignIns(),
        LiveStreams(services[Waiters]),
        TaskLists(services[Database], services[TaskService], settings),
        TaskPages(services[Database], settings, services[CallbackService]),
        Waveforms(services[Storage], services[Database]),
    )
    provide(console, *services.values(), *own)
    console.include_router(_router())
    for page in (sign_in, task_list, task_page, webhook_pages, accounts):
        console.include_router(page.router)

    async def show_error(request: Request, exc: Exception) -> Response:
        return _error_page(pages, request, exc)

    async def show_failure(request: Request, _: Exception) -> Response:
        # The exception goes on to the application, which logs it.
        return _error_page(pages, request, InternalError())

    expected = AppError, HTTPException, RequestValidationError, SQLAlchemyError, OSError, Refused, SignInNeeded
    for kind in expected:
        console.add_exception_handler(kind, show_error)
    console.add_exception_handler(Exception, show_failure)
    return console


def _router() -> Router:
    router = Router()
    router.add_api_route(PATH, _go_to_list, methods=["GET"])
    router.add_api_route(f"{PATH}/", _go_to_list, methods=["GET"])
    router.add_api_route(f"{PATH}/static/{{digest}}/{{name:path}}", _get_asset, methods=["GET"])
    return router


async def _go_to_list() -> Response:
    return RedirectResponse(f"{PATH}/tasks", 303)


async def _get_asset(digest: str, name: str) -> Response:
    return serve_asset(digest, name)


def _error_page(pages: Pages, request: Request, exc: Exception) -> Response:
    if isinstance(exc, SignInNeeded):
        return sign_in.ask_to_sign_in(pages, request)
    if isinstance(exc, Refused):
        return pages.render(request, "error.html", exc.status, title=exc.title, detail=exc.detail, errors=())
    error = as_app_error(exc)
    response = pages.render(
        request, "error.html", error.status, title=error.title, detail=error.detail, errors=error.errors
    )
    response.headers.update(error.headers)
    return response
