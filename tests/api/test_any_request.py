"""Requests made from the OpenAPI document, good and bad, alone and in sequences, against the running service."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.support.settings import KEY

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
# `make fuzz` gives it more, and each run other requests.
SECONDS = os.environ.get("FUZZ_SECONDS")


@pytest.mark.timeout(0 if SECONDS else 180)
async def test_any_request_is_answered_as_documented(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox(delay=0.2, rate=100_000, credits=1e6)
        service = await processes.serve(database_url, sandbox.url, upstream_rate="1000/1")

        # What only admins may ask for is asked too.
        at = {"database_url": database_url, "upstream_url": sandbox.url}
        [key] = json.loads((await processes.run("keys", "list", "--json", **at)).stdout)
        assert (await processes.run("keys", "set", key["id"], "--admin", **at)).code == 0

        run = await asyncio.create_subprocess_exec(
            *_command(service.url), cwd=tmp_path, env=processes.environment(), stdout=PIPE, stderr=STDOUT
        )
        try:
            said, _ = await run.communicate()
        finally:
            if run.returncode is None:
                run.kill()

    assert run.returncode == 0, said.decode()


def _command(url: str) -> list[str]:
    how_much = ["--max-time", SECONDS] if SECONDS else ["--max-time", "18", "--seed", "1"]
    return [
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIGURATION}", "--no-color"),
        *("run", f"{url}/openapi.json", "--continue-on-failure", *how_much),
        *("--header", f"Authorization: Bearer {KEY}"),
    ]
