"""Header fields that negotiate, read as their RFCs define them."""

from datetime import UTC, datetime, timedelta

import pytest

from app.web.negotiation import matches, quality, retry_after

NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ([], (0.0, 0)),
        (["*/*"], (1.0, 0)),
        (["application/*;q=0.5"], (0.5, 1)),
        (["Application/JSON"], (1.0, 2)),
        (["application/json ; Q=0.25"], (0.25, 2)),
        (["*/*, application/json;q=0.1"], (0.1, 2)),
        (["*/*", "application/*;q=0"], (0.0, 0)),
        (["application/json;q=0.000, */*"], (0.0, 0)),
        (["application/json;charset=utf-8;q=0.5"], (0.5, 2)),
        (["application/json;q=often"], (1.0, 2)),
        (["application/jsonp, text/html"], (0.0, 0)),
    ],
)
def test_most_exact_media_range_decides_the_quality(accept: list[str], expected: tuple[float, int]) -> None:
    assert quality(accept, "application/json") == expected


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"'])
@pytest.mark.parametrize(
    ("if_none_match", "is_match"),
    [
        (None, False),
        ("", False),
        ('"1"', True),
        ('W/"1"', True),
        ('"0", W/"1" ,"2"', True),
        ("*", True),
        ('"11"', False),
        ("1", False),
        ('"*"', False),
    ],
)
def test_if_none_match_compares_entity_tags_weakly(if_none_match: str | None, is_match: bool, etag: str) -> None:
    assert matches(if_none_match, etag) is is_match


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("0", 0),
        ("0.5", 0.5),
        ("3601", 3600),
        ("999999999", 3600),
        ("Sun, 22 Nov 2026 17:01:00 GMT", 60),
        ("Sun, 22 Nov 2026 16:00:00 GMT", 0),
        ("Sun, 22 Nov 2026 17:01:00 -0000", 60),
        ("Wed, 22 Dec 2027 17:00:00 GMT", 3600),
        ("", None),
        ("-5", None),
        ("1e3", None),
        ("٣", None),
        ("soon", None),
        ("9" * 40, None),
        ("Sun, 99 Nov 99999 17:01:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date_up_to_the_ceiling(value: str, seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)

    assert retry_after({"Retry-After": value}, NOW, HOUR) == expected


def test_retry_after_without_a_ceiling_is_honoured_in_full() -> None:
    assert retry_after({"retry-after": "999999999"}, NOW) == timedelta(seconds=999_999_999)


def test_response_without_retry_after_asks_for_no_wait() -> None:
    assert retry_after({"Retry": "5"}, NOW, HOUR) is None
