"""
Storing an order once: one key, one body, one task.

The key is the Idempotency-Key header, after draft-ietf-httpapi-idempotency-key-header, or the id that the caller has
chosen for the task.
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

from fastapi import Depends, Header, Path, Request
from pydantic import AfterValidator
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import select

from app.database.engine import Session, insert_new
from app.errors import IdempotencyKeyReused, IdTaken, InvalidRequest, TaskDeleted
from app.models import IdempotencyKey, SpentCharge, Task
from app.tasks.order_schemas import TaskCreate
from app.tasks.queue.insertion import Order
from app.tasks.repository import find_task
from app.web.fields import EXAMPLE_TASK_ID, UUID_PATTERN, as_id

TTL = timedelta(hours=24)

OTHER_BODY = (
    "The id was sent with another body: send the first one again to get its task, or take a new id for this one."
)
ID_OF_DELETED = "No new task was created. To request the sound again, take a new id."

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


async def refuse_key(request: Request) -> None:
    """Raise InvalidRequest for an order that has a key although its id is one: which of both counts is not guessed."""
    if "idempotency-key" in request.headers:
        detail = "is not taken here: the id of the task is the key"
        raise InvalidRequest(errors=[{"pointer": "#/header/Idempotency-Key", "detail": detail}])


def _as_new_id(text: str) -> str:
    if (id_ := as_id(text)) is None:
        raise ValueError(f"must be a UUID such as {EXAMPLE_TASK_ID}, with dashes or without")
    return id_


KeyDep = Annotated[str | None, Depends(find_key)]
NewTaskId = Annotated[
    str,
    Path(
        description="The `id` of the new task: a UUID that you have made, of any version, in hex digits with dashes or"
        " without.",
        examples=[EXAMPLE_TASK_ID],
        json_schema_extra={"pattern": UUID_PATTERN},
    ),
    AfterValidator(_as_new_id),
]


@dataclass(frozen=True, slots=True)
class Claimed:
    """
    The task that an order is for already, None if that is still to be found or created.

    `row` is the order's Idempotency-Key, locked; None without one.
    """

    row: IdempotencyKey | None
    task: Task | None

    def is_older(self, task: Task | None) -> bool:
        """Whether a task was there before this order and its key, and is used again."""
        return task is not None and (
            self.task is None or (self.row is not None and task.created_at < self.row.created_at)
        )

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


async def claim_order(session: Session, order: Order, key: str | None, digest: str, now: datetime) -> Claimed:
    """Find the task of an earlier order with this key, or with this id. Raises as both."""
    if order.task_id is not None:
        return Claimed(None, await claim_id(session, order.api_key_id, order.task_id, digest))
    return await claim_key(session, order.api_key_id, key, digest, now)


async def claim_id(session: Session, api_key_id: str, task_id: str, digest: str) -> Task | None:
    """
    The task that the caller has ordered with this id already; None for an id that is new.

    Raises IdTaken for another's id, and for one that this service has made; IdempotencyKeyReused;
    and TaskDeleted, as long as is kept what the task has cost.
    """
    task = await find_task(session, task_id)
    if task is None:
        await refuse_spent(session, api_key_id, task_id)
        return None
    if task.api_key_id != api_key_id or task.order_digest is None:
        raise IdTaken
    if task.order_digest != digest:
        raise IdempotencyKeyReused(OTHER_BODY)
    return task


async def refuse_spent(session: Session, api_key_id: str, task_id: str) -> None:
    """Raise TaskDeleted for an id whose task was deleted, IdTaken where that was another's."""
    spent = await session.get(SpentCharge, task_id)
    if spent is not None:
        raise TaskDeleted(ID_OF_DELETED) if spent.api_key_id == api_key_id else IdTaken


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
