"""Many callers wait at one process: each costs little memory, and a stop answers them all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.tasks.crowd import AS_ANSWER, AS_STREAM, check_crowd

SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("crowd", "path", "preference"),
    [
        (500, "", AS_ANSWER),
        pytest.param(500, "/events", AS_STREAM, marks=SLOW),
        pytest.param(5_000, "", AS_ANSWER, marks=SLOW),
        pytest.param(5_000, "/events", AS_STREAM, marks=SLOW),
    ],
)
async def test_idle_waits_take_less_than_20_kib_each(
    tmp_path: Path, database_url: str, crowd: int, path: str, preference: str, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        await check_crowd(processes, database_url, crowd, path, preference, measured)
