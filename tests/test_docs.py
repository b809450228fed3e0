"""The documents name only what exists, and keep their form."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.enums import WebhookType
from tests.api.document import document
from tests.support.settings import ROOT

NAMES = (
    "README",
    "CONTRIBUTING",
    "SECURITY",
    "CHANGELOG",
    "docs/browser",
    "docs/database",
    "docs/deployment",
    "docs/operations",
)
DOCUMENTS = [f"{name}.md" for name in NAMES]
CONFIGURATION = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])
PATHS = (r"`((?:app|tests|migrations|\.github|\.ci)/[\w./-]+)`", r"`(\.?[\w.-]+\.(?:toml|ya?ml|example|md))`")
TESTS = re.compile(r"`tests/[\w/]+\.py`")
KINDS_OF_CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_that_are_named_exist(name: str) -> None:
    named = {path for pattern in PATHS for path in re.findall(pattern, _text(name))}

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_are_linked_exist(name: str) -> None:
    linked = re.findall(r"\]\(([\w./-]+)\)", _text(name))

    assert [path for path in linked if not ((ROOT / name).parent / path).exists()] == []


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(_text("README.md").splitlines()) <= 150


def test_contributing_has_its_picture_its_recipes_and_its_decisions() -> None:
    text = _text("CONTRIBUTING.md")

    assert text.count("```mermaid") == 1
    for recipe in ("A setting", "A task field", "An event type", "An upstream code", "A CLI command"):
        assert f"**{recipe}" in text


def test_every_room_is_in_the_picture() -> None:
    [picture] = re.findall(r"^```mermaid\n(.*?)^```", _text("CONTRIBUTING.md"), re.DOTALL | re.MULTILINE)
    rooms = {path.parent.name for path in ROOT.glob("app/*/__init__.py")} - {"sandbox"}

    assert rooms - set(re.findall(r"\w+", picture)) == set()


def test_every_promise_names_tests() -> None:
    promises = _rows("CONTRIBUTING.md", "Promises, and the tests that prove them")

    assert len(promises) > 30
    assert [promise for promise, tests in promises if not TESTS.search(tests)] == []


def test_every_threat_names_what_stops_it_and_tests_or_is_said_not_to_be_stopped() -> None:
    threats = _rows("SECURITY.md", "Threats")

    assert len(threats) > 30
    assert all(who and aim and stopped_by for who, aim, stopped_by, _ in threats)
    unproven = [stopped_by for _, _, stopped_by, tests in threats if not TESTS.search(tests)]
    assert [stopped_by for stopped_by in unproven if not stopped_by.startswith("**Not stopped**")] == []


def test_every_webhook_type_is_in_the_openapi_document() -> None:
    assert set(document()["webhooks"]) == set(WebhookType)


@pytest.mark.parametrize("path", CONFIGURATION, ids=lambda path: path.name)
def test_configuration_can_be_read_and_names_no_host(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)
    assert "://" not in path.read_text()


def test_workflow_runs_what_must_pass_here() -> None:
    workflow = _yaml(".github/workflows/ci.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]

    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"push", "pull_request"}
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_hooks_before_a_commit_are_targets_of_make_and_download_nothing() -> None:
    [repository] = _yaml(".pre-commit-config.yaml")["repos"]

    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == ["make format", "make lint"]


def test_all_that_is_pinned_is_watched_for_updates() -> None:
    updates = _yaml(".github/dependabot.yml")["updates"]

    assert {update["package-ecosystem"] for update in updates} == {
        "pip",
        "github-actions",
        "docker",
        "docker-compose",
        "npm",
    }


def test_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^(##+) (.+)", _text("CHANGELOG.md"), re.MULTILINE)

    assert headings[0] == ("##", "[Unreleased]")
    assert {name for level, name in headings if level == "###"} <= KINDS_OF_CHANGES


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _yaml(name: str) -> Any:
    return yaml.safe_load(_text(name))


def _rows(name: str, heading: str) -> list[tuple[str, ...]]:
    """The cells of the table below a heading, without its first two lines."""
    section = _text(name).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]
