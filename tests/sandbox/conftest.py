"""Fixtures of the sandbox's tests."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.sandbox.running import CallbackReceiver, client_of, sandbox_in_thread, serving_receiver


@pytest.fixture
async def receiver() -> AsyncIterator[CallbackReceiver]:
    """A callback receiver that responds with 200."""
    async with serving_receiver() as it:
        yield it


@pytest.fixture(scope="session")
def sandbox() -> Iterator[str]:
    """One sandbox for all tests that need no special options."""
    with sandbox_in_thread() as base:
        yield base


@pytest.fixture
async def client(sandbox: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that sandbox."""
    async with client_of(sandbox) as it:
        yield it
