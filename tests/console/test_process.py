"""What the console costs a process that nobody visits, and how a visit ends with the process."""

import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.processes import Processes
from tests.support.settings import KEY, ROOT

BUILT = """
import sys
from app.config import Settings
from app.main import create_app
from app.services import build_services
create_app(build_services(Settings(_env_file=None, secret_keys="a-secret-key-of-the-tests-alone", console={console})))
print([name for name in sys.modules if name.partition(".")[0] == "jinja2" or name.startswith("app.console.app")])
"""


def test_nothing_of_the_console_is_imported_before_its_first_visit(tmp_path: Path) -> None:
    for console in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", BUILT.format(console=console)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

        assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


async def test_an_open_page_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with Processes(tmp_path, grace="2") as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", sandbox.url)
        async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as browser:
            await browser.post("/console/sign-in", data={"key": KEY})
            async with browser.stream("GET", "/console/live/tasks") as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                began = time.monotonic()
                code = await service.stop()
                took = time.monotonic() - began
                rest = [line async for line in lines]

    assert code == 0
    assert "retry: 1000" in rest[-3:]
    assert took < 2
