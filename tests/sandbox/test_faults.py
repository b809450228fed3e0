"""The fault table, its listing, the ways to select faults, and the timeline of a task."""

import random
import re
from typing import get_args

import pytest
from fastapi.routing import APIRoute
from typer.testing import CliRunner

from app.cli.main import main
from app.sandbox import FAULTS, ROUTES_HELP, InvalidFault, SandboxOptions, inspection, list_faults
from app.sandbox.faults import GROUPS, Group, Unit, parse_faults, parse_prompt_faults, select_faults, strip_tags
from app.sandbox.timeline import Stage, plan_callbacks, stage_at


def test_every_fault_has_a_group_a_unit_and_a_short_sentence() -> None:
    for name, fault in FAULTS.items():
        assert fault.group in get_args(Group)
        assert 0 < len(fault.description) <= 100, name
        assert fault.unit in (None, *get_args(Unit))


def test_list_has_every_fault_once_in_its_group_with_value_default_and_sentence() -> None:
    listed = CliRunner().invoke(main, ["sandbox", "--list-faults"])
    table = listed.stdout.partition("\nSubmit: ")[2].partition("\n\nRoutes ")[0]
    row = re.compile(r"  ([a-z0-9-]+)(?:=([A-Za-z]+))?(?: \(([0-9.]+)\))? {2,}(.+)")
    rows = [
        (group, match[1], match[2], float(match[3]) if match[3] else None, match[4])
        for group, part in zip(GROUPS, table.split("\n\n"), strict=True)
        for line in part.splitlines()[1:]
        if (match := row.fullmatch(line))
    ]

    assert listed.exit_code == 0
    assert rows == [(f.group, name, f.unit, f.default, f.description) for name, f in FAULTS.items()]
    assert all(fault.description[0].isupper() and fault.description.endswith(".") for fault in FAULTS.values())


def test_examples_of_the_list_are_valid() -> None:
    tagged = parse_prompt_faults(list_faults())
    [option] = re.findall(r"--fault (\S+[0-9])", list_faults())

    assert tagged is not None
    assert [spec.name for spec in tagged] == ["drop-callbacks", "code-405", "slow"]
    assert [spec.name for spec in parse_faults(option)] == ["drop-callbacks", "code-500"]


def test_list_ends_with_every_route_and_control_of_the_sandbox() -> None:
    text = CliRunner().invoke(main, ["sandbox", "--list-faults"]).stdout

    assert text.endswith(f"\n\n{ROUTES_HELP}\n")
    for route in inspection.router.routes:
        assert isinstance(route, APIRoute)
        assert all(f"\n  {method} {route.path} " in text for method in route.methods or ())
    for name in inspection.ControlUpdate.model_fields:
        assert re.search(rf"\b{name}\b", ROUTES_HELP.partition("POST /control")[2])


def test_list_fits_into_a_terminal() -> None:
    assert max(map(len, list_faults(80).splitlines())) <= 80
    assert max(map(len, ROUTES_HELP.splitlines())) <= 80
    assert " ".join(list_faults(80).split()) == " ".join(list_faults().split())


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("", {}),
        ("drop-callbacks", {"drop-callbacks": None}),
        (" Slow=0.5 ,code-405=2", {"slow": 0.5, "code-405": 2.0}),
        ("slow, failed", {"slow": 5, "failed": 500}),
        ("slow:1, code-430:0", {"slow": 5}),
        ("slow=2:1.0", {"slow": 2}),
    ],
)
def test_faults_are_parsed_with_values_and_probabilities(text: str, drawn: dict[str, float | None]) -> None:
    assert select_faults(parse_faults(text), random.Random(0)) == drawn  # noqa: S311


@pytest.mark.parametrize("text", ["no-such", "slow=", "slow=x", "slow=-1", "drop-callbacks=2", "slow:1.5", "="])
def test_invalid_fault_is_refused(text: str) -> None:
    with pytest.raises(InvalidFault):
        parse_faults(text)
    with pytest.raises(InvalidFault):
        SandboxOptions(fault=text)


def test_tags_are_found_anywhere_and_stripped_from_the_prompt() -> None:
    prompt = "soft [fault: slow=1] rain [FAULT:only-complete, failed=408]"
    specs = parse_prompt_faults(prompt)

    assert specs is not None
    assert [(spec.name, spec.value) for spec in specs] == [("slow", 1), ("only-complete", None), ("failed", 408)]
    assert strip_tags(prompt) == "soft rain"
    assert parse_prompt_faults("soft rain") is None
    assert parse_prompt_faults("soft rain [fault:]") == ()


def test_options_do_not_show_their_secrets() -> None:
    shown = repr(SandboxOptions(api_key="canary-1", callback_hmac_key="canary-2"))

    assert "canary" not in shown


@pytest.mark.parametrize(
    ("elapsed", "stage"),
    [
        (0, Stage.pending),
        (3.9, Stage.pending),
        (4, Stage.text),
        (7, Stage.first),
        (9.9, Stage.first),
        (10, Stage.complete),
    ],
)
def test_stages_are_spread_over_the_delay(elapsed: float, stage: Stage) -> None:
    assert stage_at(elapsed, delay=10) is stage
    assert stage_at(elapsed, delay=0) is Stage.complete


def test_callbacks_are_planned_as_the_stages_come() -> None:
    assert [(step.at, step.kind) for step in plan_callbacks({}, 10)] == [(4, "text"), (7, "first"), (10, "complete")]
    assert [step.at for step in plan_callbacks({"delay-callbacks": 5}, 10)] == [9, 12, 15]
    assert [step.at for step in plan_callbacks({"reorder-callbacks": None}, 10)] == [10, 10, 10]
