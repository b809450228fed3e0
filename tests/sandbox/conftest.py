"""What every test of the sandbox may ask for."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.sandbox.running import CallbackReceiver, client_of, sandbox_in_thread, serving_receiver


@pytest.fixture
async def receiver() -> AsyncIterator[CallbackReceiver]:
    """A caller that answers 200."""
    async with serving_receiver() as one:
        yield one


@pytest.fixture(scope="session")
def sandbox() -> Iterator[str]:
    """One sandbox for all tests that need no options of their own."""
    with sandbox_in_thread() as base:
        yield base


@pytest.fixture
async def client(sandbox: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that sandbox."""
    async with client_of(sandbox) as one:
        yield one
