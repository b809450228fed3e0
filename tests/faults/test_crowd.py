"""Orders that come all at once are sent once each, at the pace; the larger crowd is in proof.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.enums import TaskStatus
from tests.faults.crowd import crowd, promises_broken
from tests.support.processes import Processes


@pytest.mark.timeout(400)
async def test_two_hundred_orders_at_once_are_sent_once_each(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    count = 1 if database_url.startswith("sqlite") else 4
    with Processes(tmp_path) as processes:
        ledger = await crowd(processes, database_url, orders=200, rate="20/1", count=count, measured=measured)

    assert promises_broken(ledger, 200, "20/1") == []
    assert {task.status for task in ledger.tasks.values()} == {TaskStatus.succeeded}
