"""Group commit: one bad item fails alone, and a database that is away fails all of a commit at once."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from app.database.group_commit import GroupCommit
from app.errors import DatabaseUnavailable
from tests.support.wait import eventually


class Refused(Exception):
    """A driver's error with PostgreSQL's code for it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Writer:
    """Writes numbers, at most three in a commit, and fails for 13 with an error."""

    def __init__(self, error: Exception, *, is_idempotent: bool = True, most: int = 100) -> None:
        self.commits: list[Sequence[int]] = []
        self._error = error
        self.may_fail_alone = asyncio.Event()
        self.may_fail_alone.set()
        self.group = GroupCommit(self._write, 3, is_idempotent=is_idempotent, most=most)

    async def add_all(self, *numbers: int) -> list[object]:
        return await asyncio.gather(*map(self.group.add, numbers), return_exceptions=True)

    async def _write(self, take: Callable[[], Sequence[int]]) -> Sequence[int]:
        numbers = take()
        self.commits.append(numbers)
        await asyncio.sleep(0)
        if list(numbers) == [13]:
            await self.may_fail_alone.wait()
        if 13 in numbers:
            raise self._error
        return [-number for number in numbers]


async def test_what_arrives_during_a_commit_is_written_by_the_next() -> None:
    writer = Writer(ValueError())
    first = asyncio.create_task(writer.group.add(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert await writer.add_all(2, 3, 4, 5) == [-2, -3, -4, -5]
    assert await first == -1
    assert writer.commits == [[1], [2, 3, 4], [5]]


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        IntegrityError("INSERT", None, Refused("23505")),
        DBAPIError("INSERT", None, Refused("22P05")),
        IntegrityError("INSERT", None, Refused(None)),
    ],
)
async def test_bad_item_fails_alone(error: Exception) -> None:
    writer = Writer(error)

    assert await writer.add_all(1, 13, 2) == [-1, error, -2]
    assert writer.commits == [[1, 13, 2], [1], [13], [2]]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        OperationalError("COMMIT", None, Refused(None)),
        OperationalError("COMMIT", None, Refused("57P01")),
        DBAPIError("COMMIT", None, Refused("08006"), connection_invalidated=True),
    ],
)
async def test_database_that_is_away_fails_all_of_a_commit_at_once(error: Exception) -> None:
    writer = Writer(error)

    assert await writer.add_all(1, 13, 2) == [error, error, error]
    assert writer.commits == [[1, 13, 2]]
    # The writer goes on.
    assert await writer.add_all(3) == [-3]


async def test_caller_who_is_gone_takes_nothing_from_the_others() -> None:
    writer = Writer(ValueError())
    gone = asyncio.create_task(writer.group.add(1))
    stays = asyncio.create_task(writer.group.add(2))
    await asyncio.sleep(0)
    gone.cancel()

    assert await stays == -2
    assert writer.commits == [[1, 2]]


async def test_failed_commit_is_repeated_only_where_items_may_be_written_twice() -> None:
    writer = Writer(error := ValueError(), is_idempotent=False)

    assert await writer.add_all(1, 13, 2) == [error, error, error]
    assert writer.commits == [[1, 13, 2]]


@pytest.mark.parametrize("is_idempotent", [True, False])
async def test_item_whose_caller_has_gone_is_written_only_where_that_is_harmless(is_idempotent: bool) -> None:
    writer = Writer(ValueError(), is_idempotent=is_idempotent)
    first = asyncio.create_task(writer.group.add(1))
    await asyncio.sleep(0)
    gone = asyncio.create_task(writer.group.add(2))
    await asyncio.sleep(0)
    gone.cancel()

    assert await first == -1
    assert await writer.group.add(3) == -3
    assert any(2 in commit for commit in writer.commits) is is_idempotent


async def test_more_than_may_wait_are_refused_at_once_and_find_room_later() -> None:
    writer = Writer(ValueError(), most=2)

    first, second, refused = await writer.add_all(1, 2, 3)

    assert (first, second) == (-1, -2)
    assert isinstance(refused, DatabaseUnavailable)
    assert "Retry-After" in refused.headers
    assert await writer.group.add(3) == -3


async def test_items_that_fail_alone_delay_no_others() -> None:
    writer = Writer(ValueError())
    writer.may_fail_alone.clear()
    again = [asyncio.create_task(writer.group.add(13, apart=True)) for _ in range(3)]
    failing = asyncio.create_task(writer.add_all(1, 13))
    await eventually(lambda: [1, 13] in writer.commits)

    assert await writer.group.add(2) == -2
    assert not any(task.done() for task in (*again, failing))
    writer.may_fail_alone.set()
    assert (await failing)[0] == -1
    await asyncio.gather(*again, return_exceptions=True)
    # Those that failed in company come before those that failed alone.
    assert writer.commits == [[13], [1, 13], [2], [1], [13], [13], [13]]


async def test_turn_that_does_not_come_fails_all_who_have_waited_for_it_but_none_who_came_later() -> None:
    turns: list[asyncio.Future[None]] = []

    async def write(take: Callable[[], Sequence[int]]) -> Sequence[int]:
        turns.append(asyncio.get_running_loop().create_future())
        await turns[-1]
        return [-number for number in take()]

    group = GroupCommit(write, 3, is_idempotent=True)
    early = [asyncio.create_task(group.add(number)) for number in range(10)]
    await eventually(lambda: len(turns) == 1)
    late = asyncio.create_task(group.add(10))
    await asyncio.sleep(0)
    turns[0].set_exception(TimeoutError())
    await eventually(lambda: len(turns) == 2)

    assert all(isinstance(one.exception(), TimeoutError) for one in early)
    turns[1].set_result(None)
    assert await late == -10


async def test_items_that_wait_apart_share_a_turn_that_does_not_come() -> None:
    attempts = 0

    async def write(take: Callable[[], Sequence[int]]) -> Sequence[int]:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        raise TimeoutError

    group = GroupCommit(write, 3, is_idempotent=True)
    found = await asyncio.gather(*(group.add(number, apart=True) for number in range(5)), return_exceptions=True)

    assert [type(one) for one in found] == [TimeoutError] * 5
    assert attempts == 1
