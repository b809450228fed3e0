"""What others made is here as they published it, listed with its version and licence."""

from hashlib import sha256
from pathlib import Path

from tests.console.vendor import VENDOR, packages

LICENCES = {"0BSD", "Apache-2.0", "BSD-3-Clause", "MIT"}


def test_every_vendored_file_is_listed_and_is_as_it_was_published() -> None:
    listed = {
        f"{package['name']}/{Path(path).name}": digest
        for package in packages()
        for path, digest in package["files"].items()
    }
    found = {
        path.relative_to(VENDOR).as_posix(): sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*/**/*")
    }

    assert found == listed


def test_every_package_is_here_with_its_licence() -> None:
    assert {package["licence"] for package in packages()} <= LICENCES
    assert [package["name"] for package in packages() if not (VENDOR / package["name"] / "LICENSE").exists()] == []
    assert [package["name"] for package in packages() if len(package["sha256"]) != 64] == []


def test_our_own_style_sheets_are_small() -> None:
    assert sum(sheet.stat().st_size for sheet in VENDOR.parent.glob("*.css")) <= 10_000
