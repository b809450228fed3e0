"""The signatures of callbacks."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.upstream.suno.signature import callback_signature_matches

KEY = "test-key"
SIGNED_AT = datetime.fromtimestamp(1700000000, UTC)
HEADERS = {
    "X-Webhook-Timestamp": "1700000000",
    "X-Webhook-Signature": "WtzV65swf0LZzsInJvP0mLo1FSny6bKpqDqus37Q1RM=",
}


def test_published_signature_matches() -> None:
    assert callback_signature_matches(HEADERS, "2fac9f72", KEY, SIGNED_AT)
    assert callback_signature_matches({k.lower(): v for k, v in HEADERS.items()}, "2fac9f72", KEY, SIGNED_AT)


@pytest.mark.parametrize(("minutes", "matches"), [(-5.1, False), (-5, True), (0, True), (5, True), (5.1, False)])
def test_signature_holds_five_minutes_either_way(minutes: float, matches: bool) -> None:
    now = SIGNED_AT + timedelta(minutes=minutes)
    assert callback_signature_matches(HEADERS, "2fac9f72", KEY, now) is matches


@pytest.mark.parametrize(
    ("headers", "task_id", "key"),
    [
        (HEADERS, "2fac9f73", KEY),
        (HEADERS, None, KEY),
        (HEADERS, "2fac9f72", "other-key"),
        (HEADERS, "2fac9f72", ""),
        ({}, "2fac9f72", KEY),
        ({"X-Webhook-Timestamp": "1700000000"}, "2fac9f72", KEY),
        ({"X-Webhook-Signature": HEADERS["X-Webhook-Signature"]}, "2fac9f72", KEY),
        (HEADERS | {"X-Webhook-Signature": ""}, "2fac9f72", KEY),
        (HEADERS | {"X-Webhook-Signature": HEADERS["X-Webhook-Signature"].lower()}, "2fac9f72", KEY),
        (HEADERS | {"X-Webhook-Timestamp": "1700000001"}, "2fac9f72", KEY),
    ],
)
def test_anything_else_does_not(headers: dict[str, str], task_id: str | None, key: str) -> None:
    assert not callback_signature_matches(headers, task_id, key, SIGNED_AT)


def test_signed_timestamp_must_be_whole_seconds() -> None:
    headers = {
        "x-webhook-timestamp": "1700000000.0",
        "x-webhook-signature": "lhbO8laYxI72gkTOJMssoqMkV2OijfsPjRoLYTQAJEE=",
    }
    assert not callback_signature_matches(headers, "2fac9f72", KEY, SIGNED_AT)


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@settings(deadline=None)
@given(timestamp=ANY_TEXT, signature=ANY_TEXT, task_id=ANY_TEXT, key=ANY_TEXT)
def test_comparing_never_raises(timestamp: str, signature: str, task_id: str, key: str) -> None:
    headers = {"x-webhook-timestamp": timestamp, "x-webhook-signature": signature}
    assert not callback_signature_matches(headers, task_id, key, SIGNED_AT)
