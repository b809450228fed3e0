"""The Idempotency-Key header, after draft-ietf-httpapi-idempotency-key-header: one key, one order, one task."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import select

from app.db import Session, insert_new
from app.errors import IdempotencyKeyReused, InvalidRequest
from app.models import IdempotencyKey, Task
from app.tasks.repository import find_task
from app.tasks.schemas import TaskCreate

KEPT_FOR = timedelta(hours=24)
LONGEST = 255


def read_key(header: str | None) -> str | None:
    """
    The key that a header names, quoted (an RFC 8941 string) or bare. Raises InvalidRequest.

    `"k"` and `k` are one key: the draft asks for quotes, most clients leave them out.
    """
    if header is None:
        return None
    key = header.strip()
    if key.startswith('"'):
        quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', key)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not re.fullmatch(r"[\x20-\x7e]+", key) or len(key) > LONGEST:
        detail = f"must be 1 to {LONGEST} visible ASCII characters, quoted or bare"
        raise InvalidRequest(errors=[{"pointer": "#/header/Idempotency-Key", "detail": detail}])
    return key


def fingerprint(order: TaskCreate, model: str) -> str:
    """What an order means, defaults filled in: two bodies that mean the same have one fingerprint."""
    meant = {**order.model_dump(mode="json"), "model": model}
    return sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


async def claim_key(
    session: Session, api_key_id: str, key: str, print_: str, now: datetime
) -> tuple[IdempotencyKey, Task | None]:
    """
    Return the key's row, locked, and the task that it stands for already, if any. Raises IdempotencyKeyReused.

    The insert makes concurrent requests with one key wait for each other: the first
    to commit has made the task, and the others find it.
    """
    row = {"api_key_id": api_key_id, "key": key, "fingerprint": print_, "task_id": "", "created_at": now}
    await insert_new(session, IdempotencyKey, row)
    mine = select(IdempotencyKey).where(IdempotencyKey.api_key_id == api_key_id, IdempotencyKey.key == key)
    kept = (await session.scalars(mine.with_for_update())).one()
    task = await find_task(session, kept.task_id) if kept.created_at + KEPT_FOR > now else None
    if task is None:
        kept.fingerprint, kept.created_at = print_, now
        return kept, None
    if kept.fingerprint != print_:
        raise IdempotencyKeyReused
    return kept, task
