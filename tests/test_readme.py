"""README promises nothing that does not work: its commands run, its tables are whole."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.errors import AppError, cases
from tests.support.processes import free_port
from tests.support.settings import ROOT

README = (ROOT / "README.md").read_text()
TOUR = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_command_of_the_tour_works(tmp_path: Path) -> None:
    service, sandbox = str(free_port()), str(free_port())
    script = "\n".join(TOUR).replace("8000", service).replace("8001", sandbox)
    command = tmp_path / "bin" / "soundpost"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOUNDPOST_")}
    environment |= {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    log = tmp_path / "tour.log"
    with log.open("w") as output:
        tour = subprocess.Popen(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = tour.wait(150)
    finally:
        # The tour leaves its two servers running, as it would on a reader's machine.
        os.killpg(tour.pid, signal.SIGKILL)

    assert code == 0, log.read_text()
    assert (tmp_path / "rain.wav").read_bytes().startswith(b"RIFF")


def test_tour_has_commands() -> None:
    assert sum(block.count("curl ") for block in TOUR) >= 10


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_every_setting_is_explained(setting: str) -> None:
    assert f"`SOUNDPOST_{setting.upper()}`" in README


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.slug)
def test_every_problem_is_listed(case: type[AppError]) -> None:
    assert f"| `{case.slug}` | {case.status} | {case.title} |" in README


def test_the_two_commands_are_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets
