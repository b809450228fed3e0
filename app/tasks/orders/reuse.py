"""What an order prefers (RFC 7240): to wait for its end, and to get an equal sound that its caller has already."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema
from sqlalchemy import bindparam, exists, select

from app.database.engine import Session
from app.enums import TaskStatus
from app.models import Clip, Task
from app.tasks.waiting import Wait, read_wait
from app.web.negotiation import preferred_reuse

_SUCCEEDED = bindparam(None, TaskStatus.succeeded, Task.status.type, literal_execute=True)
PreferHeader = Annotated[
    list[str] | SkipJsonSchema[None],
    WithJsonSchema({"type": "string", "examples": ["wait=30, reuse=86400"]}),
    Header(
        alias="Prefer",
        description="`wait=n` (RFC 7240) delays the response until the task has ended, by at most n seconds (up to 60)."
        " `reuse=n` is answered with your own task for the same prompt, model and sound parameters, if one has"
        " succeeded in the last n seconds (up to 2592000, 30 days) and its audio is not lost: nothing is ordered then,"
        " and nothing counts against your rate or budget. Both can be given, separated by a comma.",
    ),
]


@dataclass(frozen=True, slots=True)
class Preferences:
    """How long to wait for the end of the task, and how old a sound may be that is used again; None for neither."""

    wait: Wait | None
    reuse: timedelta | None


async def read_preferences(request: Request, prefer: PreferHeader = None) -> Preferences:
    """What an order prefers. What cannot be read is ignored."""
    seconds = preferred_reuse(prefer or ())
    return Preferences(await read_wait(request, prefer), None if seconds is None else timedelta(seconds=seconds))


PreferencesDep = Annotated[Preferences, Depends(read_preferences)]


async def find_reusable(session: Session, api_key_id: str, sound_digest: str, since: datetime) -> Task | None:
    """The caller's latest task that has succeeded since then with this sound, and none of whose audio is lost."""
    is_lost = exists().where(Clip.task_id == Task.id, Clip.given_up_at.isnot(None))
    equal = Task.api_key_id == api_key_id, Task.sound_digest == sound_digest
    # Written into the statement, the state lets the planner take the partial index.
    query = select(Task).where(*equal, Task.status == _SUCCEEDED, Task.completed_at >= since, ~is_lost)
    task: Task | None = await session.scalar(query.order_by(Task.completed_at.desc()).limit(1))
    return task
