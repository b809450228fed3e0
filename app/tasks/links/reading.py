"""Who reads a task: the caller whose key a request carries, or whoever has a signed link."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, SecurityScopes
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Scope

from app.auth.callers import OPERATOR, Caller, LastUsesDep, authenticate, bearer, require_permitted
from app.enums import Scope as KeyScope
from app.errors import NotAuthenticated
from app.signed_urls import Link, SignedUrls
from app.web import Text
from app.web.exception_handlers import INSTEAD_OF_NOT_FOUND
from app.web.provided import DatabaseDep

REFUSED = "The link has expired or was not made by this service; read the task again."
_LINK = "soundpost.link"
_LINKED = "/v1/tasks/"
# What of a link is left when a letter of it was changed.
_SIGNED = re.compile(rb"(^|&)(expires|scope|signature)=", re.IGNORECASE)

Expires = Annotated[
    Text | SkipJsonSchema[None],
    Query(description="When a signed link expires, in Unix seconds; part of the link.", examples=["1769932800"]),
]
ScopeOfLink = Annotated[
    Text | SkipJsonSchema[None],
    Query(
        alias="scope",
        description="What a signed link may read; part of the links for browsers.",
        examples=["task.events.audio"],
    ),
]
Signature = Annotated[
    Text | SkipJsonSchema[None],
    Query(description="The signature of a signed link; part of the link.", examples=["kq3vB1fGZt8"]),
]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: a caller, or somebody with a link, who may read what it was made for and nothing else."""

    caller: Caller
    link: Link | None = None


def check_links(signed_urls: SignedUrls) -> Callable[[Scope], None]:
    """
    What looks at each request, before anything else does, for a signed link that works.

    It raises NotAuthenticated for what looks like a link and is none, unless the request has
    a key: whatever was changed, it gets the same response as a link to an unknown task.
    """

    def check(scope: Scope) -> None:
        path, query = scope["path"], scope["query_string"]
        if scope["method"] not in ("GET", "HEAD") or not path.startswith(_LINKED):
            return
        # Without its question mark, a link is a path alone.
        if not (_SIGNED.search(query) if query else "signature=" in path):
            return
        is_as_made = b"%" not in scope.get("raw_path", b"")
        link = signed_urls.opened_by(path, query) if is_as_made else None
        if link is not None:
            scope[_LINK] = link
            if link.scope:
                # What was erased is no secret to its owner, but is one to everybody else.
                scope[INSTEAD_OF_NOT_FOUND] = NotAuthenticated(REFUSED)
        elif not any(name == b"authorization" for name, _ in scope["headers"]):
            raise NotAuthenticated(REFUSED)

    return check


async def find_reader(
    needed: SecurityScopes,
    request: Request,
    database: DatabaseDep,
    last_uses: LastUsesDep,
    credentials: Credentials,
    expires: Expires = None,
    scope: ScopeOfLink = None,
    signature: Signature = None,
) -> Reader:
    """
    Who reads by a key or by a link: either is enough, whatever the other is worth.

    Raises NotAuthenticated, and NotPermitted for a key without the scope that the route needs.
    """
    link: Link | None = request.scope.get(_LINK)
    if link is not None:
        return Reader(OPERATOR, link)
    return Reader(await require_permitted(needed, await authenticate(database, last_uses, credentials)))


ReaderDep = Annotated[Reader, Security(find_reader, scopes=[KeyScope.read.value])]
