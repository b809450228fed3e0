"""Tasks that are created all at once are submitted once each, at the pace."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.enums import TaskStatus
from tests.faults.crowd import crowd, promises_broken
from tests.support.processes import Processes


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_two_hundred_tasks_at_once_are_submitted_once_each(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    count = 1 if database_url.startswith("sqlite") else 4
    with Processes(tmp_path) as processes:
        ledger = await crowd(processes, database_url, orders=200, rate="20/1", count=count, measured=measured)

    assert promises_broken(ledger, 200, "20/1") == []
    assert {task.status for task in ledger.tasks.values()} == {TaskStatus.succeeded}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_thousand_tasks_at_once_are_submitted_once_each(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        ledger = await crowd(processes, database_url, orders=1_000, rate="400/1", count=4, measured=measured)

    assert promises_broken(ledger, 1_000, "400/1") == []
    assert {task.status for task in ledger.tasks.values()} == {TaskStatus.succeeded}
