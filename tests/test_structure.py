"""The size of the code: how many files, layers and lines a reader has to hold in mind."""

import ast
import tomllib
from pathlib import Path

from tests.support.settings import ROOT

APP = ROOT / "app"
MODULES = sorted(APP.rglob("*.py"))


def test_few_modules_stand_outside_of_a_room() -> None:
    assert len(list(APP.glob("*.py"))) <= 12


def test_layers_can_be_said_aloud() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

    assert len(next(each for each in contracts if each["name"] == "Imports only go down")["layers"]) <= 15


def test_rooms_hold_at_most_fifteen_files() -> None:
    rooms = {path.parent for path in MODULES}

    assert {str(room): count for room in rooms if (count := len(list(room.glob("*.py")))) > 15} == {}


def test_modules_have_at_most_300_lines() -> None:
    assert {str(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 300} == {}


def test_functions_have_at_most_50_lines() -> None:
    assert [place for path in MODULES for place in _long_functions(path)] == []


def _long_functions(path: Path) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= 50
    ]
