"""Who is signed in: a signed cookie that names an API key, and the proof that a form is one of our pages'."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import SecurityScopes
from starlette.responses import Response

from app.auth.callers import Caller, LastUsesDep, Row, find_callers
from app.config import Settings
from app.database.engine import Database
from app.enums import Scope
from app.keyring import Keyring
from app.web.prefix import prefix_of
from app.web.provided import provided

LIFETIME = timedelta(hours=12)
FORM_TYPE = "application/x-www-form-urlencoded"
MAX_FIELDS = 50


class SignInNeeded(Exception):
    """The page is for those who are signed in."""


class Refused(Exception):
    """The console does not do what was asked."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(title)
        self.status, self.title, self.detail = status, title, detail


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is signed in: the caller whose key it was, the key's name, and the token that proves a form to be ours."""

    caller: Caller
    name: str
    csrf_token: str

    @property
    def is_admin(self) -> bool:
        """Whether everything may be seen and acted on."""
        return self.caller.is_admin

    def acting_for(self, row: Row) -> Caller:
        """The caller to change this row as: its owner. Raises NotFound where the visitor may not even read it."""
        owner = self.caller.require_readable(row).api_key_id
        return replace(self.caller, api_key_id=owner, acting_key_id=self.caller.api_key_id)

    def may(self, scope: str) -> bool:
        """Whether the key has this scope: pages leave out what they need others for."""
        return self.caller.may(scope)


class Sessions:
    """
    Signs the cookie, and reads it.

    It holds the id of the API key and the time of the signing in. The signature covers the key's hash too: a session
    ends with the very key that it was begun with.
    """

    def __init__(self, keyring: Keyring, database: Database, settings: Settings) -> None:
        self._keyring, self._database = keyring, database
        base = settings.link_base
        self._path, self._host = f"{prefix_of(base)}/console", urlsplit(base).netloc
        self._is_secure = base.startswith("https:")
        # A name with this prefix is set and kept by browsers only with `Secure` (RFC 6265bis §4.1.3).
        self.cookie = "__Secure-soundpost" if self._is_secure else "soundpost"

    def begin(self, response: Response, caller: Caller) -> None:
        """Sign this caller in."""
        subject = f"{caller.api_key_id}.{int(time.time())}"
        signature = self._keyring.token("console session", f"{subject}.{caller.key_hash}")
        lasts = int(LIFETIME.total_seconds())
        response.set_cookie(
            self.cookie,
            f"{subject}.{signature}",
            max_age=lasts,
            path=self._path,
            secure=self._is_secure,
            httponly=True,
            samesite="strict",
        )

    def end(self, response: Response) -> None:
        """Sign out."""
        response.delete_cookie(self.cookie, path=self._path, secure=self._is_secure, httponly=True, samesite="strict")

    async def find_visitor(self, request: Request) -> Visitor | None:
        """Who sent this request, if the session is not over and its key works."""
        cookie = request.cookies.get(self.cookie, "")
        key_id, _, rest = cookie.partition(".")
        issued, _, signature = rest.partition(".")
        if not (issued.isdecimal() and len(issued) <= 12 and key_id.isascii() and key_id.isalnum()):
            return None
        if time.time() - int(issued) >= LIFETIME.total_seconds():
            return None
        for caller, name in await find_callers(self._database, key_id):
            if self._keyring.matches("console session", f"{key_id}.{issued}.{caller.key_hash}", signature):
                structlog.contextvars.bind_contextvars(caller=name)
                return Visitor(caller, name, self._keyring.token("console form", cookie))
        return None

    def is_from_us(self, request: Request) -> bool:
        """Whether a page of this service has sent the request, as far as the browser says."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is not None:
            return site == "same-origin"
        # Sec-Fetch-Site is only sent to HTTPS and to this machine. Behind a proxy, Host may be another than the
        # browser's.
        return origin is None or urlsplit(origin).netloc in {request.headers.get("host"), self._host} - {"", None}

    def is_token_of(self, request: Request, token: str) -> bool:
        """Whether this is the token that the forms of this session have."""
        return self._keyring.matches("console form", request.cookies.get(self.cookie, ""), token)


SessionsDep = Annotated[Sessions, provided(Sessions)]


async def require_visitor(request: Request, sessions: SessionsDep, last_uses: LastUsesDep) -> Visitor:
    """Who is signed in. Raises SignInNeeded."""
    visitor = await sessions.find_visitor(request)
    if visitor is None:
        raise SignInNeeded
    last_uses.note(visitor.caller.api_key_id)
    request.state.visitor = visitor
    return visitor


VisitorDep = Annotated[Visitor, Depends(require_visitor)]


async def require_permitted(needed: SecurityScopes, visitor: VisitorDep) -> Visitor:
    """Who is signed in with a key that has the scopes that the page needs. Raises SignInNeeded, NotPermitted."""
    for scope in needed.scopes:
        visitor.caller.require(scope)
    return visitor


def _with(scope: Scope) -> Any:
    return Security(require_permitted, scopes=[scope.value])


# What a page takes, by the scope that it needs.
SubmitVisitor = Annotated[Visitor, _with(Scope.submit)]
ReadVisitor = Annotated[Visitor, _with(Scope.read)]
WebhooksVisitor = Annotated[Visitor, _with(Scope.webhooks)]
AdminVisitor = Annotated[Visitor, _with(Scope.admin)]


async def read_form(request: Request, sessions: SessionsDep) -> Mapping[str, str]:
    """The fields of a form without those that are empty, which one of our pages has sent. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise Refused(415, "This is not a form of the console", f"Send {FORM_TYPE}.")
    try:
        fields = _parsed(await request.body())
    except ValueError:
        raise Refused(400, "The form cannot be read", "Reload the page and try again.") from None
    if not sessions.is_from_us(request):
        raise Refused(403, "The form came from another site", "Open the console itself and try again there.")
    return fields


def _parsed(body: bytes) -> dict[str, str]:
    """The fields of a form. Raises ValueError."""
    fields = dict(parse_qsl(body.decode(), max_num_fields=MAX_FIELDS, strict_parsing=False))
    if any("\0" in value for value in fields.values()):
        raise ValueError("PostgreSQL stores no NUL")
    return fields


async def read_own_form(
    request: Request,
    sessions: SessionsDep,
    _visitor: VisitorDep,
    fields: Annotated[Mapping[str, str], Depends(read_form)],
) -> Mapping[str, str]:
    """The same with the token of this session, as `csrf_token` or in `X-CSRF-Token`. Raises Refused, SignInNeeded."""
    token = request.headers.get("x-csrf-token") or fields.get("csrf_token", "")
    if not sessions.is_token_of(request, token):
        raise Refused(
            403, "The form is out of date", "You may have signed in anew since. Reload the page and try again."
        )
    return fields


FormDep = Annotated[Mapping[str, str], Depends(read_own_form)]
