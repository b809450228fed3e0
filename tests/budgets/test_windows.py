"""When the windows of budgets begin and end, in UTC."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.budgets.ledger import resets_at, window_start
from app.enums import Window

BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        (Window.day, datetime(2026, 3, 1, 8, tzinfo=UTC), (2026, 3, 1), (2026, 3, 2)),
        (Window.day, datetime(2026, 3, 1, tzinfo=UTC), (2026, 3, 1), (2026, 3, 2)),
        (Window.day, datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC), (2026, 2, 28), (2026, 3, 1)),
        (Window.day, datetime(2026, 3, 1, 0, 30, tzinfo=BERLIN), (2026, 2, 28), (2026, 3, 1)),
        (Window.day, datetime(2026, 12, 31, 12, tzinfo=UTC), (2026, 12, 31), (2027, 1, 1)),
        (Window.month, datetime(2026, 3, 31, 8, tzinfo=UTC), (2026, 3, 1), (2026, 4, 1)),
        (Window.month, datetime(2026, 4, 1, tzinfo=UTC), (2026, 4, 1), (2026, 5, 1)),
        (Window.month, datetime(2026, 12, 31, 23, 59, tzinfo=UTC), (2026, 12, 1), (2027, 1, 1)),
        (Window.month, datetime(2028, 2, 29, tzinfo=UTC), (2028, 2, 1), (2028, 3, 1)),
    ],
)
def test_window_is_a_day_or_a_month_in_utc(
    window: Window, now: datetime, start: tuple[int, int, int], end: tuple[int, int, int]
) -> None:
    began = window_start(window, now)

    assert began == datetime(*start, tzinfo=UTC)
    assert resets_at(window, began) == datetime(*end, tzinfo=UTC)
