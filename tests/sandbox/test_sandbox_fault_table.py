"""The table of faults and the ways to ask for them."""

import random
from typing import get_args

import pytest

from app.sandbox import FAULTS, FaultRefused, SandboxOptions
from app.sandbox.faults import Group, draw, parse_terms, terms_in_prompt, without_tags
from app.sandbox.timeline import Stage, plan_callbacks, stage_after


def test_every_row_says_in_few_words_what_it_does() -> None:
    for name, fault in FAULTS.items():
        assert fault.group in get_args(Group)
        assert 0 < len(fault.does) <= 100, name
        assert fault.value in (None, "times", "seconds", "code", "MB")


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
def test_faults_are_read_with_values_and_probabilities(text: str, drawn: dict[str, float | None]) -> None:
    assert draw(parse_terms(text), random.Random(0)) == drawn  # noqa: S311


@pytest.mark.parametrize("text", ["no-such", "slow=", "slow=x", "slow=-1", "drop-callbacks=2", "slow:1.5", "="])
def test_what_is_not_in_the_table_is_refused(text: str) -> None:
    with pytest.raises(FaultRefused):
        parse_terms(text)
    with pytest.raises(FaultRefused):
        SandboxOptions(fault=text)


def test_tags_are_found_anywhere_and_do_not_sound() -> None:
    prompt = "soft [fault: slow=1] rain [FAULT:only-complete, failed=408]"
    terms = terms_in_prompt(prompt)

    assert terms is not None
    assert [(term.name, term.value) for term in terms] == [("slow", 1), ("only-complete", None), ("failed", 408)]
    assert without_tags(prompt) == "soft rain"
    assert terms_in_prompt("soft rain") is None
    assert terms_in_prompt("soft rain [fault:]") == ()


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
    assert stage_after(elapsed, delay=10) is stage
    assert stage_after(elapsed, delay=0) is Stage.complete


def test_callbacks_are_planned_as_the_stages_come() -> None:
    assert [(step.at, step.kind) for step in plan_callbacks({}, 10)] == [(4, "text"), (7, "first"), (10, "complete")]
    assert [step.at for step in plan_callbacks({"delay-callbacks": 5}, 10)] == [9, 12, 15]
    assert [step.at for step in plan_callbacks({"reorder-callbacks": None}, 10)] == [10, 10, 10]
