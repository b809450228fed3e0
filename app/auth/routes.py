"""The audit log in REST, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from app.auth.audit import list_entries
from app.auth.callers import AdminCaller
from app.auth.schemas import AuditPage, read_entry
from app.web import Moment
from app.web.pagination import PAGE, Cursor, Limit, decode_time_cursor, next_page
from app.web.provided import DatabaseDep
from app.web.routing import Router

router = Router(tags=["admin"])
Since = Annotated[
    Moment | SkipJsonSchema[None],
    Query(description="Only changes made at or after this time (RFC 3339).", examples=["2026-01-01T00:00:00Z"]),
]
Until = Annotated[
    Moment | SkipJsonSchema[None],
    Query(description="Only changes made before this time (RFC 3339).", examples=["2026-02-01T00:00:00Z"]),
]


@router.get("/v1/audit", operation_id="listAudit", summary="List the audit log", responses=PAGE)
async def list_audit(
    request: Request,
    response: Response,
    database: DatabaseDep,
    _: AdminCaller,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AuditPage:
    """
    List what keys and operators have changed, newest first.

    Orders and cancels of a key's own tasks are not in it: tasks and events tell of them. Entries are never changed, and
    are deleted after `SOUNDPOST_AUDIT_DAYS`.
    """
    before = decode_time_cursor(request, cursor)
    async with database.reads() as session:
        found = await list_entries(session, since, until, before, limit + 1)
    page, following = next_page(request, response, found, limit, lambda entry: (entry.created_at.isoformat(), entry.id))
    return AuditPage(items=[read_entry(entry) for entry in page], next_cursor=following)
