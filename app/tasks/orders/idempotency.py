"""
Storing an order once.

The Idempotency-Key header, after draft-ietf-httpapi-idempotency-key-header: one key, one body, one task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import select

from app.database.engine import Session, insert_new
from app.errors import IdempotencyKeyReused, InvalidRequest, TaskDeleted
from app.models import IdempotencyKey, Task
from app.tasks.order_schemas import TaskCreate
from app.tasks.repository import find_task

TTL = timedelta(hours=24)

# Quoted, which is an RFC 8941 string, or bare: the draft asks for quotes, most clients leave them out.
QUOTED = r'"(?:[ !#-\[\]-~]|\\["\\]){1,255}"'
BARE = r"[!#-~](?:[ -~]{0,253}[!-~])?"
PATTERN = f"^(?:{QUOTED}|{BARE})$"

IdempotencyHeader = Annotated[
    str | SkipJsonSchema[None],
    Header(
        alias="Idempotency-Key",
        description="A key of your choice: 1 to 255 visible ASCII characters, quoted or bare. For 24 hours, requests"
        " with the same key and body make one task, even if that is deleted meanwhile; the same key with another body"
        " is refused.",
        json_schema_extra={"pattern": PATTERN, "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"]},
    ),
]


async def find_key(request: Request, idempotency_key: IdempotencyHeader = None) -> str | None:
    """The key of a request, if it has one. Raises InvalidRequest."""
    return None if idempotency_key is None else read_key(request.headers.getlist("idempotency-key"))


def read_key(values: Sequence[str]) -> str:
    """The key that the header names; `"k"` and `k` are one. Raises InvalidRequest."""
    key = values[0].strip()
    if len(values) > 1 or not re.fullmatch(PATTERN, key):
        detail = "must be one key of 1 to 255 visible ASCII characters, quoted or bare"
        raise InvalidRequest(errors=[{"pointer": "#/header/Idempotency-Key", "detail": detail}])
    return re.sub(r"\\(.)", r"\1", key[1:-1]) if key.startswith('"') else key


KeyDep = Annotated[str | None, Depends(find_key)]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A locked Idempotency-Key with its task, None if that is still to be created; `row` is None without a key."""

    row: IdempotencyKey | None
    task: Task | None

    def bind_to(self, task: Task | SimpleNamespace) -> None:
        """Bind the key, if there is one, to this task, in this transaction."""
        if self.row is not None:
            self.row.task_id = task.id


def fingerprint(body: TaskCreate, default_model: str) -> str:
    """
    The SHA-256, in hex, of a normalised body with its defaults: equivalent bodies have one fingerprint.

    Links are left out: they are a part of the answer, and an order is the same whatever links it asks for.
    """
    normalised = {**body.model_dump(mode="json", exclude={"links"}), "model": body.model or default_model}
    return sha256(json.dumps(normalised, sort_keys=True).encode()).hexdigest()


async def claim_key(session: Session, api_key_id: str, key: str | None, digest: str, now: datetime) -> Claimed:
    """
    Lock a key and find the task that it is bound to, if any.

    The insert makes concurrent requests with one key wait for each other: the first
    to commit has made the task, and the others find it. Raises IdempotencyKeyReused, and
    TaskDeleted: a late retry must not pay again for what was deleted.
    """
    if key is None:
        return Claimed(None, None)
    row = {"api_key_id": api_key_id, "key": key, "fingerprint": digest, "task_id": "", "created_at": now}
    await insert_new(session, IdempotencyKey, row)
    mine = select(IdempotencyKey).where(IdempotencyKey.api_key_id == api_key_id, IdempotencyKey.key == key)
    stored = (await session.scalars(mine.with_for_update())).one()
    if not stored.task_id or stored.created_at + TTL <= now:
        stored.fingerprint, stored.created_at = digest, now
        return Claimed(stored, None)
    if stored.fingerprint != digest:
        raise IdempotencyKeyReused
    task = await find_task(session, stored.task_id)
    if task is None:
        raise TaskDeleted
    return Claimed(stored, task)
