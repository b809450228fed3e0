"""`soundpost demo` ends with files that play, whatever the environment, and leaves no process behind."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.clips.media_types import measure
from tests.support.processes import Processes
from tests.support.wait import eventually

# Invalid settings: a demo that read them would fail.
NONSENSE = {"database_url": "nonsense", "upstream_url": "nonsense", "grace": "nonsense", "api_keys": "nonsense"}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path, **NONSENSE) as processes:
        yield processes


async def test_demos_that_run_at_once_end_with_files_that_play(processes: Processes) -> None:
    ended = await asyncio.gather(*(processes.run("demo", "soft rain :cat: [dim]") for _ in range(2)))

    for each in ended:
        assert (each.code, each.stderr) == (0, "")
        lines = each.stdout.splitlines()
        files = [Path(line) for line in lines if line.startswith("/")]
        [task_id] = {file.parent.name for file in files}
        assert [file.parent for file in files] == [processes.folder / "var/demo" / task_id] * 2
        assert all(measure(file) for file in files)
        assert f"Task {task_id}: soft rain :cat: [dim]" in lines
        assert [line.split()[2] for line in lines if " s  " in line][-1].rstrip(",") == "succeeded"
        assert "  POST /v1/tasks → 202" in lines


async def test_demo_fails_with_the_error_of_its_task(processes: Processes) -> None:
    ended = await processes.run("demo", "soft rain [fault:failed]")

    assert ended.code == 1
    assert "The demo failed: the task ended as failed" in ended.stdout
    assert not (processes.folder / "var").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopped_demo_stops_the_processes_that_it_started(processes: Processes, number: signal.Signals) -> None:
    demo = processes.start("demo", "soft rain")
    await eventually(lambda: "\nTask " in demo.output, within=60)
    children = demo.children

    began = time.monotonic()
    code = await demo.stop(number, within=30)

    assert code == 130
    assert time.monotonic() - began < 20
    assert len(children) == 2
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
