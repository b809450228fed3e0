"""What is left of a task that is erased: what it has cost."""

from __future__ import annotations

from datetime import datetime

from app.database.engine import Session
from app.database.wakeups import ERASURES, notify_on_commit
from app.models import SpentCharge, Task
from app.storage import references
from app.tasks import repository
from app.tasks.clips import storage_keys_of


async def erase(session: Session, task: Task, now: datetime) -> None:
    """Forget a task but for its cost, and all that was said of it; files go once no other task has them."""
    cost = {"charge": task.charge, "posts": task.posts, "created_at": task.created_at}
    session.add(SpentCharge(task_id=task.id, api_key_id=task.api_key_id, **cost))
    settled, unsettled = storage_keys_of(task.clips)
    await references.release(session, settled, now)
    await references.release(session, unsettled, now + references.IN_FLIGHT)
    await repository.delete_task(session, task.id)
    notify_on_commit(session, ERASURES)
    notify_on_commit(session, task.id)
