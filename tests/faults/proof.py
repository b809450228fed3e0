"""The long proofs: a minute of storm, a thousand orders for four processes. `make storm` and `make proof` run them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.enums import TaskStatus
from tests.faults.crowd import crowd, promises_broken
from tests.faults.storm import storm
from tests.support.processes import Processes

ORDERS = 1_000
RATE = "400/1"


@pytest.mark.timeout(600)
async def test_long_storm_loses_nothing_and_pays_nothing_twice(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        workers = 0 if database_url.startswith("sqlite") else 3
        aftermath = await storm(processes, database_url, seconds=60, workers=workers, seed=2)

    measured(
        f"a minute of storm over {workers + 1} processes on {database_url.partition('+')[0]}: {aftermath.counts()}"
    )
    assert aftermath.disagreements() == []
    assert aftermath.kills >= 5


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_thousand_orders_are_sent_once_each(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        ledger = await crowd(processes, database_url, orders=ORDERS, rate=RATE, count=4, measured=measured)

    assert promises_broken(ledger, ORDERS, RATE) == []
    assert {task.status for task in ledger.tasks.values()} == {TaskStatus.succeeded}
