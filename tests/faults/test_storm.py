"""Tasks keep coming while the upstream misbehaves and our processes are killed: nothing is lost or paid twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.storm import storm
from tests.support.processes import Processes


@pytest.mark.timeout(400)
async def test_short_storm_loses_nothing_and_pays_nothing_twice(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        workers = 0 if database_url.startswith("sqlite") else 2
        aftermath = await storm(processes, database_url, seconds=12, pause=0.8, workers=workers, seed=1)

    measured(f"{workers + 1} processes on {database_url.partition('+')[0]}: {aftermath.counts()}")
    assert aftermath.disagreements() == []
    assert aftermath.kills >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_long_storm_loses_nothing_and_pays_nothing_twice(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    with Processes(tmp_path) as processes:
        workers = 0 if database_url.startswith("sqlite") else 3
        # About as many as the upstream takes in that time, while it throttles and fails.
        aftermath = await storm(processes, database_url, seconds=60, pause=2.5, workers=workers, seed=2)

    measured(
        f"a minute of storm over {workers + 1} processes on {database_url.partition('+')[0]}: {aftermath.counts()}"
    )
    assert aftermath.disagreements() == []
    assert aftermath.kills >= 5
