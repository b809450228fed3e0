"""The end of a task for each fault of the upstream."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from app.sandbox import FAULTS
from tests.support.api import FINAL, create_task
from tests.support.processes import Process, service_process
from tests.support.sandbox import control, submits_at


class End(NamedTuple):
    """How a task ended, what it may have cost, how often it was POSTed and how often the upstream took it."""

    status: str
    error: str | None
    resolved_by: str | None
    charge: str
    posts: int
    accepted: int


CALLED_BACK = End("succeeded", None, "callback", "charged", 1, 1)
POLLED = CALLED_BACK._replace(resolved_by="poll")
ADOPTED = CALLED_BACK._replace(resolved_by="adoption")
SENT_AGAIN = CALLED_BACK._replace(posts=2)
REJECTED = End("failed", "invalid_request", None, "none", 1, 0)
NEVER_KNOWN = End("failed", "outcome_unknown", None, "possible", 1, 0)
GIVEN_UP = End("failed", "deadline_exceeded", None, "charged", 1, 1)
NO_AUDIO = End("failed", "audio_missing", "poll", "charged", 1, 1)
FAILED = End("failed", "upstream_failed", "callback", "charged", 1, 1)
NOT_ALLOWED = FAILED._replace(error="content_rejected")
NO_CREDITS = FAILED._replace(error="insufficient_credits")

# Callbacks that come when the answer is lost for certain, so that only adoption can tell what became of the order.
LATE = "delay-callbacks=8"

SUBMIT: Mapping[str, End] = {
    **{f"code-{code}": REJECTED for code in (400, 413, 422)},
    **{f"code-{code}": REJECTED._replace(error="upstream_failed") for code in (404, 409, 505)},
    **{f"code-{code}=1": SENT_AGAIN for code in (401, 402, 429)},
    **{f"code-{code}=1": SENT_AGAIN for code in (405, 430, 433, 455, 503)},
    **{f"code-{code}": NEVER_KNOWN for code in (500, 502, 504)},
    **{f"http-{status}=1": SENT_AGAIN for status in (400, 401, 403, 404, 429, 503)},
    **{f"http-{status}": NEVER_KNOWN for status in (500, 502, 504)},
    "html=1": SENT_AGAIN,
    "retry-after=1": SENT_AGAIN,
    "reset": NEVER_KNOWN,
    "hang": NEVER_KNOWN,
    **{f"accept-then-{status}, {LATE}": ADOPTED for status in (500, 502, 504)},
    f"accept-then-code-500, {LATE}": ADOPTED,
    f"accept-then-reset, {LATE}": ADOPTED,
    f"accept-then-hang, {LATE}": ADOPTED,
    f"accept-then-html, {LATE}": ADOPTED,
    f"empty-body, {LATE}": ADOPTED,
    f"slow=20, {LATE}": ADOPTED,
    f"drip=20, {LATE}": ADOPTED,
    f"huge-answer=2, {LATE}": ADOPTED,
    f"no-task-id, {LATE}": ADOPTED,
    f"odd-types, {LATE}": ADOPTED,
    "accept-then-500, drop-callbacks": NEVER_KNOWN._replace(accepted=1),
    f"accept-then-500, refunded, {LATE}": FAILED._replace(resolved_by="adoption", charge="refunded"),
    "slow=0.2": CALLED_BACK,
    "drip=0.2": CALLED_BACK,
    "huge-answer=0.5": CALLED_BACK,
    "string-code": CALLED_BACK,
    "snake-case-answer": CALLED_BACK,
    "callback-before-answer": CALLED_BACK,
}
CALLBACK: Mapping[str, End] = {
    "drop-callbacks": POLLED,
    "only-complete": CALLED_BACK,
    "repeat-callbacks=3": CALLED_BACK,
    "reorder-callbacks": CALLED_BACK,
    "delay-callbacks=0.5": CALLED_BACK,
    "second-callback": CALLED_BACK,
    "unknown-type": POLLED,
    "upper-case-type": CALLED_BACK,
    "poll-shaped": CALLED_BACK,
    "camel-case": CALLED_BACK,
    "top-level-id": CALLED_BACK,
    "missing-id": CALLED_BACK,
    # Before the answer is stored no id is known to be wrong.
    f"wrong-id, {LATE}": POLLED,
    "callback-string-code": CALLED_BACK,
    "digit-times": CALLED_BACK,
    "null-data": POLLED,
    "empty-data": POLLED,
    "malformed-callback": POLLED,
    "failed": FAILED,
    "failed-as-complete": FAILED,
    "create-failed": FAILED,
    "sensitive": NOT_ALLOWED,
    "refunded": FAILED._replace(charge="refunded"),
    **{f"failed={code}": FAILED for code in (408, 451, 501)},
    **{f"failed={code}": NOT_ALLOWED for code in (400, 413)},
    **{f"failed={code}": NO_CREDITS for code in (402, 429)},
    "failed, repeat-callbacks=3, reorder-callbacks": FAILED,
}
POLL: Mapping[str, End] = {
    "poll-500=2": POLLED,
    "poll-code-500=2": POLLED,
    "poll-throttle=1": POLLED,
    "poll-record-null=2": POLLED,
    "poll-null=2": POLLED,
    "poll-html=1": POLLED,
    "poll-empty=2": POLLED,
    "poll-reset=2": POLLED,
    "poll-hang=1": POLLED,
    "poll-slow=1": POLLED,
    "poll-stale=2": POLLED,
    "poll-lies=2": POLLED,
    "poll-callback-exception": POLLED,
    "poll-callback-exception-bare=2": POLLED,
    "poll-odd-status": POLLED,
    "poll-snake-case": POLLED,
    "poll-response-text": POLLED,
    "poll-500": GIVEN_UP,
    "poll-stale": GIVEN_UP,
    "poll-lies": NO_AUDIO,
    "poll-callback-exception-bare": NO_AUDIO,
    "failed": FAILED._replace(resolved_by="poll"),
    "sensitive": NOT_ALLOWED._replace(resolved_by="poll"),
    "refunded": FAILED._replace(resolved_by="poll", charge="refunded"),
    "failed, poll-odd-status": FAILED._replace(resolved_by="poll"),
}
EVERY = {**SUBMIT, **CALLBACK, **{f"drop-callbacks, {fault}": end for fault, end in POLL.items()}}

NEEDS_POLLS = {fault: end for fault, end in EVERY.items() if end.resolved_by == "poll" or end == GIVEN_UP}
NEEDS_NO_POLL = {fault: end for fault, end in EVERY.items() if fault not in NEEDS_POLLS}
# Only in these is the answer to the submit lost, or a deadline reached. For all others the timeout and the deadlines
# are far away, however slow the machine is.
ADOPTED_LATE = {fault: end for fault, end in EVERY.items() if end.resolved_by == "adoption"}
EXPIRED = {fault: end for fault, end in EVERY.items() if end.error in ("outcome_unknown", "deadline_exceeded")}

# Each of these is about the account, so that it meets every order there is.
ACCOUNT = ("no-credits=1", "key-revoked=1", "maintenance=1")
ELSEWHERE = frozenset({"credits-falling", "lyrics-null", "lyrics-500"})
SETTINGS = {"upstream_rate": "20/0.5", "hold_recheck": "0.3"}


def test_every_fault_of_the_upstream_has_an_expected_end() -> None:
    met = {term.strip().partition("=")[0] for fault in (*EVERY, *ACCOUNT) for term in fault.split(",")}
    known = {name for name, fault in FAULTS.items() if fault.group != "Audio"}

    assert met | ELSEWHERE == known


async def test_every_fault_ends_as_it_should_without_polls(database_url: str, tmp_path: Path) -> None:
    # However slow the machine is, no poll is made before the callbacks have come.
    settings = {**SETTINGS, "submit_deadline": "900", "poll_after": "600", "task_deadline": "900"}
    async with service_process(database_url, tmp_path, **settings) as (client, sandbox):
        await control(sandbox.url, delay=0.5, rate=1000)
        expected = {fault: end for fault, end in NEEDS_NO_POLL.items() if fault not in EXPIRED | ADOPTED_LATE}
        assert await _ends(client, sandbox, list(expected)) == expected

        # One after the other: each is an outage for whatever is sent meanwhile.
        for fault in ACCOUNT:
            [end] = (await _ends(client, sandbox, [fault])).values()
            # It may be sent once more while the outage lasts, which is no fault.
            assert end._replace(posts=min(end.posts, 2)) == SENT_AGAIN


async def test_every_lost_answer_is_made_good_by_a_callback(database_url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "upstream_timeout": "2", "submit_deadline": "900", "poll_after": "600"}
    async with service_process(database_url, tmp_path, **settings) as (client, sandbox):
        await control(sandbox.url, delay=0.5, rate=1000)
        assert await _ends(client, sandbox, list(ADOPTED_LATE)) == ADOPTED_LATE


async def test_every_fault_that_callbacks_do_not_end_is_ended_by_polls(database_url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "upstream_timeout": "10", "poll_after": "1", "poll_every": "0.5"}
    async with service_process(database_url, tmp_path, **settings) as (client, sandbox):
        await control(sandbox.url, delay=0.5, rate=1000)
        expected = {fault: end for fault, end in NEEDS_POLLS.items() if fault not in EXPIRED}
        assert await _ends(client, sandbox, list(expected)) == expected


async def test_every_fault_that_nothing_ends_is_ended_by_a_deadline(database_url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "upstream_timeout": "10", "submit_deadline": "15", "task_deadline": "5"}
    settings |= {"poll_after": "1", "poll_every": "0.5"}
    async with service_process(database_url, tmp_path, **settings) as (client, sandbox):
        await control(sandbox.url, delay=0.5, rate=1000)
        assert await _ends(client, sandbox, list(EXPIRED)) == EXPIRED


async def _ends(client: httpx.AsyncClient, sandbox: Process, faults: list[str]) -> dict[str, End]:
    """Order one sound for each of these faults, and see how they end."""
    for fault in faults:
        await create_task(client, f"soft rain [fault: {fault}]", metadata={"fault": fault})
    tasks = await _until_all_final(client, within=90)
    submits = await submits_at(sandbox.url)
    posts = Counter(submit["caller_task_id"] for submit in submits)
    accepted = Counter(submit["caller_task_id"] for submit in submits if submit["created"])
    return {
        task["metadata"]["fault"]: End(
            task["status"],
            task["error"] and task["error"]["code"],
            task["resolved_by"],
            task["charge"],
            posts[task["id"]],
            accepted[task["id"]],
        )
        for task in tasks
        if task["metadata"]["fault"] in faults
    }


async def _until_all_final(client: httpx.AsyncClient, within: float) -> list[dict[str, Any]]:
    deadline = time.monotonic() + within
    while True:
        tasks: list[dict[str, Any]] = (await client.get("/v1/tasks?limit=200")).raise_for_status().json()["items"]
        waiting = [task for task in tasks if task["status"] not in FINAL]
        if not waiting:
            return tasks
        assert time.monotonic() < deadline, waiting
        await asyncio.sleep(0.3)
