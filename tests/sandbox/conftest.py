"""What every test of the sandbox may ask for."""

from collections.abc import AsyncIterator

import pytest

from .running import Caller, calling


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """A caller that answers 200."""
    async with calling() as one:
        yield one
