"""Five thousand callers who wait at one process. `make proof` runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.tasks.crowd import AS_ANSWER, AS_STREAM, check_crowd


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("path", "preference"), [("", AS_ANSWER), ("/events", AS_STREAM)])
async def test_idle_waits_take_less_than_20_kib_each(
    tmp_path: Path, database_url: str, path: str, preference: str, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        await check_crowd(processes, database_url, 5_000, path, preference, measured)
