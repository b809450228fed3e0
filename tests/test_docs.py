"""The documents name only what exists, and keep their form."""

import re

import pytest
import yaml

from tests.support.settings import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
CONFIGURATION = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"`((?:app|tests|migrations|\.github|\.ci)/[\w./-]+)`", (ROOT / name).read_text()))

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_are_linked_exist(name: str) -> None:
    linked = re.findall(r"\]\(([\w./-]+)\)", (ROOT / name).read_text())

    assert [path for path in linked if not (ROOT / path).exists()] == []


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_contributing_has_its_picture_its_recipes_and_its_decisions() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()

    assert text.count("```mermaid") == 1
    for recipe in ("A setting", "A task field", "An event type", "An upstream code"):
        assert f"**{recipe}" in text


@pytest.mark.parametrize("path", CONFIGURATION, ids=lambda path: path.name)
def test_configuration_can_be_read(path: object) -> None:
    assert yaml.safe_load((ROOT / str(path)).read_text())


def test_workflow_runs_what_must_pass_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())

    assert {"run": ".ci/run"} in workflow["jobs"]["ci"]["steps"]
