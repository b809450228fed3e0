"""`make vendor` fetches the files of others again from npm, and checks them against the sums in vendor.toml."""

import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.support.settings import ROOT

VENDOR = ROOT / "app" / "console" / "static" / "vendor"
LIST = VENDOR / "vendor.toml"


def main() -> None:
    """Fetch every package of the list, check it, and write its files; exit with 1 where a sum is another one."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = [problem for package in packages() for problem in _vendor(package, Path(folder))]
    sys.exit("\n".join(wrong) or None)


def packages() -> list[dict[str, Any]]:
    """The packages of the list."""
    found: list[dict[str, Any]] = tomllib.loads(LIST.read_text())["package"]
    return found


def _vendor(package: Mapping[str, Any], folder: Path) -> list[str]:
    name, version = package["name"], package["version"]
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{name}@{version}"],  # noqa: S607 - whichever npm this machine has
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    archive = folder / packed.stdout.split()[-1]
    problems = _compared(f"{name} {version}", archive.read_bytes(), package["sha256"])
    if problems:
        return problems
    with tarfile.open(archive) as contents:
        for path, digest in package["files"].items():
            member = contents.extractfile(f"package/{path}")
            assert member is not None, path
            data = member.read()
            problems += _compared(f"{name} {path}", data, digest)
            target = VENDOR / name / Path(path).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    return problems


def _compared(what: str, data: bytes, expected: str) -> list[str]:
    digest = sha256(data).hexdigest()
    return [] if digest == expected else [f"{what}: vendor.toml has {expected}, but it is {digest}"]


if __name__ == "__main__":
    main()
