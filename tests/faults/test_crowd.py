"""Several processes share one queue; the larger crowd is in proof.py."""

from pathlib import Path

import pytest

from tests.faults.crowd import crowd, promises_broken
from tests.running import Processes


@pytest.mark.timeout(400)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_processes_that_share_a_queue_send_no_order_twice(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        ledger = await crowd(processes, database_url, orders=200, rate="40/1")

    assert promises_broken(ledger, 200, "40/1") == []
