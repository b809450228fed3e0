"""When a delivery is retried and an endpoint paused or disabled, as tables."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from app.config import Settings
from app.enums import DisabledBy
from app.webhooks.retry import AttemptResult, Lane, disabled_by, next_delay, pause_after, share_places

NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
SCHEDULE = Settings.model_fields["webhook_schedule"].default
RNG = random.Random(1)  # noqa: S311


def result(status: int | None = None, retry_after: float | None = None) -> AttemptResult:
    asked = None if retry_after is None else timedelta(seconds=retry_after)
    return AttemptResult(NOW, timedelta(), status_code=status, retry_after=asked)


def test_default_schedule_is_the_promised_one() -> None:
    hours = [2, 5, 10, 14, 20, 24]
    assert [span.total_seconds() for span in SCHEDULE] == [0, 5, 300, 1800, *(3600 * hour for hour in hours)]


@pytest.mark.parametrize("attempts", range(1, 10))
def test_delay_stays_within_a_fifth_of_the_schedule(attempts: int) -> None:
    delays = [next_delay(SCHEDULE, attempts, None, RNG) for _ in range(200)]

    assert all(delay is not None and 0.8 <= delay / SCHEDULE[attempts] <= 1.2 for delay in delays)
    assert len(set(delays)) > 100


def test_delivery_is_given_up_after_the_last_attempt() -> None:
    assert next_delay(SCHEDULE, len(SCHEDULE), None, RNG) is None
    assert next_delay(SCHEDULE, len(SCHEDULE) + 3, timedelta(hours=1), RNG) is None


@pytest.mark.parametrize(("asked", "least", "most"), [(0, 240, 360), (450, 450, 450), (600, 600, 600), (9e8, 600, 600)])
def test_retry_after_extends_the_delay_up_to_twice(asked: float, least: float, most: float) -> None:
    delay = next_delay(SCHEDULE, 2, timedelta(seconds=asked), RNG)

    assert delay is not None
    assert least <= delay.total_seconds() <= most


@pytest.mark.parametrize(
    ("status", "retry_after", "delay", "pause"),
    [
        (429, None, 5, 5),
        (502, None, 1800, 300),
        (504, None, 86400, 300),
        (429, 60, 86400, 60),
        (429, 3600, 10, 10),
        (429, None, None, 300),
        (503, 60, 300, None),
        (500, None, 300, None),
        (200, None, None, None),
        (None, None, 300, None),
    ],
)
def test_only_throttling_responses_pause_the_endpoint(
    status: int | None, retry_after: float | None, delay: float | None, pause: float | None
) -> None:
    waits = None if delay is None else timedelta(seconds=delay)

    paused = pause_after(result(status, retry_after), waits)

    assert paused == (None if pause is None else timedelta(seconds=pause))


@pytest.mark.parametrize(
    ("status", "days", "by"),
    [
        (410, 0, DisabledBy.gone),
        (500, 4.99, None),
        (500, 5, DisabledBy.failing),
        (None, 6, DisabledBy.failing),
    ],
)
def test_endpoint_is_disabled_when_gone_or_after_five_days(
    status: int | None, days: float, by: DisabledBy | None
) -> None:
    assert disabled_by(result(status), NOW - timedelta(days=days), NOW) is by


@pytest.mark.parametrize(("status", "success"), [(200, True), (204, True), (299, True), (301, False), (199, False)])
def test_only_2xx_is_success(status: int, success: bool) -> None:
    assert result(status).is_success is success


@pytest.mark.parametrize(
    ("lanes", "in_flight", "places", "shares"),
    [
        ([], {}, 100, {}),
        (["k h a"], {}, 100, {"k h a": 5}),
        (["k h a"], {"a": 3}, 100, {"k h a": 2}),
        (["k h a"], {"a": 5}, 100, {}),
        (["k h a", "k h b"], {"a": 5}, 4, {"k h b": 4}),
        (["k h a", "k h b"], {"a": 3, "b": 1}, 3, {"k h a": 1, "k h b": 2}),
        (["k h a", "k h b", "k h c"], {}, 2, {"k h a": 1, "k h b": 1}),
        # A host gets 20 and a key 50.
        (["k h a", "k h b", "k i c"], {"k h": 18}, 100, {"k h a": 1, "k h b": 1, "k i c": 5}),
        (["k h a", "k i b", "l i c"], {"k": 49}, 100, {"k h a": 1, "l i c": 5}),
        # The last place goes to the key, the host, the lane with the fewest.
        (["k h a", "l h b"], {"k": 2, "l": 3, "a": 2, "b": 0}, 1, {"k h a": 1}),
        (["k h a", "k i b"], {"k h": 2, "k i": 1, "a": 0, "b": 1}, 1, {"k i b": 1}),
    ],
)
def test_free_places_are_shared_among_keys_hosts_and_lanes(
    lanes: list[str], in_flight: dict[str, int], places: int, shares: dict[str, int]
) -> None:
    shared = share_places([Lane(*lane.split()) for lane in lanes], in_flight, places)

    assert {f"{lane.api_key_id} {lane.host} {lane.name}": share for lane, share in shared.items()} == shares
