"""What commands print where something is in their way: a port in use, or a reader that has gone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.support.settings import UNREACHABLE


@pytest.mark.parametrize("command", ["serve", "sandbox"])
async def test_port_in_use_is_a_sentence(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, Processes(tmp_path, upstream_url=UNREACHABLE) as processes:
        port = str(other.getsockname()[1])
        refused = await processes.run(command, "--port", port)
        nowhere = await processes.run(command, "--host", "192.0.2.1")

    assert (refused.code, refused.stdout, nowhere.code, nowhere.stdout) == (1, "", 1, "")
    assert refused.stderr == (
        f"Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another with --port or --host.\n"
    )
    assert "Cannot listen on 192.0.2.1 port 800" in nowhere.stderr
    # A service that holds the port may be of another release, and its database must stay as it is.
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize("command", [["doctor"], ["sandbox", "--port", "0"]])
def test_command_whose_reader_has_gone_ends_in_silence(command: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, log_level="error").environment()
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", *command],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (1, "")
