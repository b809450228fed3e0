"""Faults of the account: they begin with one submit and meet everyone."""

from typing import Any

import httpx
import pytest

from .running import codes, created, nowhere, sandboxed, submit


async def credits_left(client: httpx.AsyncClient) -> Any:
    """What the credit call says."""
    return (await client.get("/api/v1/generate/credit")).json()["data"]


@pytest.mark.parametrize(("fault", "code"), [("no-credits", 429), ("key-revoked", 401), ("maintenance", 455)])
async def test_account_stops_working_for_everyone_and_recovers(fault: str, code: int) -> None:
    async with sandboxed() as client:
        url, prompt = nowhere(), f"rain [fault: {fault}=0.3]"
        answers = [await submit(client, prompt, callBackUrl=url), await submit(client, "wind")]
        while codes(last := await submit(client, prompt, callBackUrl=url)) == [code]:
            pass

    assert codes(*answers) == [code, code]
    assert codes(last) == [200]


async def test_empty_account_shows_no_credits_until_they_are_set() -> None:
    async with sandboxed(credits=100) as client:
        await submit(client, "rain [fault: no-credits]")
        empty = await credits_left(client)
        await client.post("/control", json={"credits": 7.6})
        answers = [await submit(client, "wind"), await submit(client, "wind")]

    assert empty == 0
    assert codes(*answers) == [200, 200]


async def test_falling_credits_end_with_this_task() -> None:
    async with sandboxed() as client:
        answers = [await submit(client, "rain [fault: credits-falling]"), await submit(client, "wind")]
        left = await credits_left(client)

    assert (codes(*answers), left) == ([200, 429], 0)


async def test_refunded_task_gives_its_credits_back() -> None:
    async with sandboxed(credits=10) as client:
        await created(client, "rain [fault: refunded]")
        spent = await credits_left(client)
        seen = [spent]

        async def look() -> None:
            seen.append(await credits_left(client))

        while seen[-1] == spent:
            await look()

    assert (spent, seen[-1]) == (7.5, 10)
