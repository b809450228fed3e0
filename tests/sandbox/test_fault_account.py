"""Faults of the account: they start with one submit and apply to all callers."""

from typing import Any

import httpx
import pytest

from app.sandbox.account import Account
from tests.sandbox.running import codes, create_task, running_sandbox, submit, unreachable_url


async def credits_left(client: httpx.AsyncClient) -> Any:
    """The credits that the upstream reports."""
    return (await client.get("/api/v1/generate/credit")).json()["data"]


@pytest.mark.parametrize(
    ("fault", "code", "end"),
    [
        ("no-credits", 429, {"credits": 10}),
        ("key-revoked=60", 401, {"key_works": True}),
        ("maintenance=60", 455, {"maintenance": False}),
    ],
)
async def test_outage_meets_all_submits_until_it_ends(fault: str, code: int, end: dict[str, Any]) -> None:
    async with running_sandbox() as client:
        url, prompt = unreachable_url(), f"rain [fault: {fault}]"
        stopped = [await submit(client, prompt, callBackUrl=url), await submit(client, "wind")]
        await client.post("/control", json=end)
        resumed = [await submit(client, prompt, callBackUrl=url), await submit(client, "wind")]

    assert codes(*stopped) == [code, code]
    assert codes(*resumed) == [200, 200]


def test_outages_end_when_their_time_is_over() -> None:
    account = Account(10)
    account.start_outage("key", 100, 5)
    account.start_outage("maintenance", 100, None)

    assert [account.has_outage(now, "key") for now in (100, 104.9, 105)] == [True, True, False]
    assert account.has_outage(1e9, "maintenance")
    assert not account.has_outage(100, "credits")


def test_rate_window_slides_over_the_accepted_requests() -> None:
    account = Account(10)
    times = [0, 4, 5, 9.9, 10, 13.9, 14, 14.1]

    assert [account.try_acquire(now, 2, 10) for now in times] == [True, True, False, False, True, False, True, False]


async def test_empty_account_shows_no_credits_until_they_are_set() -> None:
    async with running_sandbox(credits=100) as client:
        await submit(client, "rain [fault: no-credits]")
        empty = await credits_left(client)
        await client.post("/control", json={"credits": 7.6})
        answers = [await submit(client, "wind"), await submit(client, "wind")]

    assert empty == 0
    assert codes(*answers) == [200, 200]


async def test_all_credits_are_charged_for_this_task() -> None:
    async with running_sandbox() as client:
        answers = [await submit(client, "rain [fault: credits-falling]"), await submit(client, "wind")]
        left = await credits_left(client)

    assert (codes(*answers), left) == ([200, 429], 0)


async def test_refunded_task_gives_its_credits_back() -> None:
    async with running_sandbox(credits=10) as client:
        await create_task(client, "rain [fault: refunded]")
        spent = await credits_left(client)
        left = spent
        while left == spent:
            left = await credits_left(client)

    assert (spent, left) == (7.5, 10)
