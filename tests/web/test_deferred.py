"""A crowd that comes to wait is taken in a few at a time, and nothing else waits for it."""

import asyncio
from datetime import timedelta

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.errors import DatabaseUnavailable
from app.web import deferred
from app.web.deferred import AT_ONCE, DeferredResponse, DeferredResponses, arrived_at

WAIT = [(b"prefer", b"wait=60")]
STREAM = [(b"accept", b"text/event-stream")]
TASK = "/v1/tasks/1"


class Rooms:
    """An application whose requests for a task stay inside until they may leave, and then wait outside."""

    def __init__(self) -> None:
        self.inside = self.outside = self.answered = 0
        self.may_leave, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(TASK):
            self.answered += 1
            return
        self.inside += 1
        await self.may_leave.wait()
        self.inside -= 1
        await DeferredResponse(self._wait)(scope, receive, send)

    async def _wait(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        self.outside += 1
        await self.may_end.wait()


async def test_few_of_a_crowd_are_inside_and_others_pass_them() -> None:
    rooms = Rooms()
    app = DeferredResponses(rooms)
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(_ask(app, TASK, WAIT))
            group.create_task(_ask(app, f"{TASK}/events", STREAM))
        await _turns()
        group.create_task(_ask(app, "/callbacks/1/token", [], "POST"))
        await _turns()
        crowded, answered = rooms.inside, rooms.answered
        rooms.may_leave.set()
        await _turns()
        waiting = rooms.outside
        rooms.may_end.set()

    assert (crowded, answered, waiting) == (AT_ONCE, 1, 20)


async def test_a_callback_passes_a_crowd_whose_reads_never_pause() -> None:
    answered: list[str] = []

    async def answer(scope: Scope, _receive: Receive, _send: Send) -> None:
        answered.append(scope["method"])

    app = DeferredResponses(answer)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(_ask(app, TASK, WAIT))
        group.create_task(_ask(app, "/callbacks/1/token", [], "POST"))

    assert answered == ["GET"] * AT_ONCE + ["POST"] + ["GET"] * (20 - AT_ONCE)


@pytest.mark.parametrize(
    ("path", "headers"), [(TASK, []), (f"{TASK}/clips/0/audio", WAIT), (f"{TASK}/events", [(b"accept", b"*/*")])]
)
async def test_what_does_not_wait_needs_no_turn(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    rooms = Rooms()
    app = DeferredResponses(rooms)
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE + 1):
            group.create_task(_ask(app, path, headers))
        await _turns()
        inside = rooms.inside
        rooms.may_leave.set()
        rooms.may_end.set()

    assert inside == AT_ONCE + 1


async def test_request_has_arrived_before_it_waits_for_its_turn() -> None:
    arrivals: list[float] = []
    may_leave = asyncio.Event()

    async def answer(scope: Scope, _receive: Receive, _send: Send) -> None:
        arrivals.append(arrived_at(scope))
        await may_leave.wait()

    app = DeferredResponses(answer)
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE + 1):
            group.create_task(_ask(app, TASK, WAIT))
        await _turns()
        all_asked = asyncio.get_running_loop().time()
        may_leave.set()

    assert len(arrivals) == AT_ONCE + 1
    assert max(arrivals) <= all_asked


async def test_request_that_gets_no_turn_in_time_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "PATIENCE", timedelta(milliseconds=10))
    rooms = Rooms()
    app = DeferredResponses(rooms)
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(_ask(app, TASK, WAIT))
        await _turns()
        with pytest.raises(DatabaseUnavailable) as refused:
            await _ask(app, TASK, WAIT)
        rooms.may_leave.set()
        rooms.may_end.set()

    assert refused.value.headers["Retry-After"]


async def _ask(app: DeferredResponses, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET") -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        pass

    await app({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)


async def _turns() -> None:
    """Let every task of the loop come as far as it can."""
    for _ in range(100):
        await asyncio.sleep(0)
