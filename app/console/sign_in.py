"""Signing in with an API key, and out again."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request, Response

from app.auth.callers import LastUsesDep, find_caller, hash_key
from app.console.live import last_message
from app.console.mount import PATH
from app.console.rendering import Pages, PagesDep
from app.console.session import FormDep, SessionsDep, VisitorDep, read_form
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(prefix=PATH)
# So many wrong keys from one address in this time, and no key is looked at until the time has passed.
MAX_FAILURES, WINDOW = 10, timedelta(minutes=1)
MAX_ADDRESSES = 1000
_OWN_PATH = re.compile(rf"{PATH}/(?!\.|[^?]*/\.)[\w/.-]*(\?[\w=&%.:+-]*)?", re.ASCII)


class FailedSignIns:
    """The latest wrong keys by address, in this process: short keys, which operators may set, are not to be guessed."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = {}

    def wait_for(self, address: str) -> int:
        """The seconds until this address may try again; 0 at once."""
        failures = self._failures.get(address, deque())
        left = failures[0] + WINDOW.total_seconds() - time.monotonic() if len(failures) == MAX_FAILURES else 0
        return max(0, int(left) + 1) if left > 0 else 0

    def add(self, address: str) -> None:
        failures = self._failures.pop(address, deque(maxlen=MAX_FAILURES))
        failures.append(time.monotonic())
        self._failures[address] = failures
        while len(self._failures) > MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]


FailedDep = Annotated[FailedSignIns, provided(FailedSignIns)]


@router.get("/sign-in")
async def show_form(request: Request, pages: PagesDep) -> Response:
    """The form that asks for a key."""
    return pages.render(request, "sign_in.html", next=_own(request.query_params.get("next", "")), problem="")


@router.post("/sign-in")
async def sign_in(
    request: Request,
    pages: PagesDep,
    sessions: SessionsDep,
    database: DatabaseDep,
    last_uses: LastUsesDep,
    failed: FailedDep,
    form: Annotated[Mapping[str, str], Depends(read_form)],
) -> Response:
    """Begin a session for the caller whose key this is."""
    following, address = _own(form.get("next", "")), request.client.host if request.client else ""
    if wait := failed.wait_for(address):
        problem = f"Too many wrong keys came from your address. Try again in {wait} s."
        response = pages.render(request, "sign_in.html", 429, next=following, problem=problem)
        response.headers["Retry-After"] = str(wait)
        return response
    caller = await find_caller(database, last_uses, hash_key(form.get("key", "").strip()))
    if caller is None:
        failed.add(address)
        problem = "This key does not work: it is mistyped, revoked or expired. `soundpost keys create` makes one."
        return pages.render(request, "sign_in.html", 401, next=following, problem=problem)
    response = pages.redirect(following)
    sessions.begin(response, caller)
    return response


@router.post("/sign-out")
async def sign_out(pages: PagesDep, sessions: SessionsDep, _visitor: VisitorDep, _form: FormDep) -> Response:
    """End the session in this browser."""
    response = pages.redirect(f"{PATH}/sign-in", "You are signed out.")
    sessions.end(response)
    return response


def ask_to_sign_in(pages: Pages, request: Request) -> Response:
    """
    The answer to who is not signed in, or seems so.

    Browsers send a strict cookie with no request that another site's link causes: then the page asks again for itself.
    """
    if request.url.path.startswith(f"{PATH}/live/"):
        # An open page would go on asking, and look as if it were live.
        return last_message(pages.text(request, "_signed_out.html"))
    is_visit = request.method == "GET" and "hx-request" not in request.headers
    if is_visit and request.headers.get("sec-fetch-site") == "cross-site":
        return pages.render(request, "reload.html")
    if not is_visit:
        detail = "Your session is over, or its key does not work any more. Sign in again."
        return pages.render(request, "error.html", 401, title="You are not signed in", detail=detail, errors=())
    query = f"?{request.url.query}" if request.url.query else ""
    asked = _own(request.url.path + query)
    return pages.redirect(f"{PATH}/sign-in" + (f"?next={_quoted(asked)}" if asked != f"{PATH}/tasks" else ""))


def _own(path: str) -> str:
    """This path if it is one of the console's, or else the list's."""
    return path if _OWN_PATH.fullmatch(path) else f"{PATH}/tasks"


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3F").replace("&", "%26").replace("+", "%2B")
