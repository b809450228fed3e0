"""Commands on a terminal of their own."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Shown:
    """What a terminal has got: as it came, and by lines without colours and the spaces at their ends."""

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in _STYLE.sub("", self.raw).splitlines()]


def run_on_terminal(
    command: list[str], folder: Path, environment: Mapping[str, str], *, columns: int = 80, within: float = 60
) -> Shown:
    """Run `soundpost` with a terminal of this width as its standard output and standard error."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    known = {name: value for name, value in environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *command],
        cwd=folder,
        env={**known, "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    got = bytearray()
    while chunk := _read(ours):
        got += chunk
    os.close(ours)
    return Shown(process.wait(within), got.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        # The other end is closed.
        return b""
