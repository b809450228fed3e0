"""Faults of the account: they begin with one submit and meet everyone."""

from typing import Any

import httpx
import pytest

from app.sandbox.account import Account
from tests.sandbox.running import codes, create_task, running_sandbox, submit, unreachable_url


async def credits_left(client: httpx.AsyncClient) -> Any:
    """What the credit call says."""
    return (await client.get("/api/v1/generate/credit")).json()["data"]


@pytest.mark.parametrize(
    ("fault", "code", "end"),
    [
        ("no-credits", 429, {"credits": 10}),
        ("key-revoked=60", 401, {"key_works": True}),
        ("maintenance=60", 455, {"maintenance": False}),
    ],
)
async def test_account_stops_working_for_everyone_and_recovers(fault: str, code: int, end: dict[str, Any]) -> None:
    async with running_sandbox() as client:
        url, prompt = unreachable_url(), f"rain [fault: {fault}]"
        stopped = [await submit(client, prompt, callBackUrl=url), await submit(client, "wind")]
        await client.post("/control", json=end)
        resumed = [await submit(client, prompt, callBackUrl=url), await submit(client, "wind")]

    assert codes(*stopped) == [code, code]
    assert codes(*resumed) == [200, 200]


def test_outages_end_when_their_time_is_over() -> None:
    account = Account(10)
    account.stop("key", 100, 5)
    account.stop("maintenance", 100, None)

    assert [account.has_outage(now, "key") for now in (100, 104.9, 105)] == [True, True, False]
    assert account.has_outage(1e9, "maintenance")
    assert not account.has_outage(100, "credits")


def test_window_slides_over_the_arrivals_that_were_let_in() -> None:
    account = Account(10)
    arrivals = [0, 4, 5, 9.9, 10, 13.9, 14, 14.1]

    assert [account.try_acquire(now, 2, 10) for now in arrivals] == [True, True, False, False, True, False, True, False]


async def test_empty_account_shows_no_credits_until_they_are_set() -> None:
    async with running_sandbox(credits=100) as client:
        await submit(client, "rain [fault: no-credits]")
        empty = await credits_left(client)
        await client.post("/control", json={"credits": 7.6})
        answers = [await submit(client, "wind"), await submit(client, "wind")]

    assert empty == 0
    assert codes(*answers) == [200, 200]


async def test_falling_credits_end_with_this_task() -> None:
    async with running_sandbox() as client:
        answers = [await submit(client, "rain [fault: credits-falling]"), await submit(client, "wind")]
        left = await credits_left(client)

    assert (codes(*answers), left) == ([200, 429], 0)


async def test_refunded_task_gives_its_credits_back() -> None:
    async with running_sandbox(credits=10) as client:
        await create_task(client, "rain [fault: refunded]")
        spent = await credits_left(client)
        seen = [spent]

        async def look() -> None:
            seen.append(await credits_left(client))

        while seen[-1] == spent:
            await look()

    assert (spent, seen[-1]) == (7.5, 10)
