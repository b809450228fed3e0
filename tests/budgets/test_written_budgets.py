"""Budgets as people write them."""

import pytest

from app.budgets.limits import parse_budget
from app.enums import Window


@pytest.mark.parametrize(
    ("written", "credit_limit", "window"),
    [
        ("500/day", 500_000, Window.day),
        ("2.5/month", 2500, Window.month),
        ("0.001/day", 1, Window.day),
        ("0/month", 0, Window.month),
        (" 5 / day ", 5000, Window.day),
        ("1000000000/day", 10**12, Window.day),
    ],
)
def test_a_budget_is_read_in_thousandths_of_credits(written: str, credit_limit: int, window: Window) -> None:
    assert parse_budget(written) == (credit_limit, window)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "500",
        "500/",
        "/day",
        "500/week",
        "500/Day",
        "-1/day",
        "1.2345/day",
        "1e3/day",
        "NaN/day",
        "٥/day",
        "5/day/2",
    ],
)
def test_what_is_no_budget_is_refused_with_what_one_looks_like(written: str) -> None:
    with pytest.raises(ValueError, match="such as 500/day"):
        parse_budget(written)


@pytest.mark.parametrize("written", ["1000000000.001/day", "9999999999/month"])
def test_a_budget_beyond_what_can_be_counted_is_refused_with_the_most_there_may_be(written: str) -> None:
    with pytest.raises(ValueError, match="at most 1000000000 credits"):
        parse_budget(written)
