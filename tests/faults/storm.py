"""A storm: orders keep coming while the upstream misbehaves and our processes are killed one after the other."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from app.config import parse_rate
from tests.faults.books import charged_by, unbalanced
from tests.faults.ledger import Ledger, made_by, most_in_a_window, read_ledger, unended
from tests.support.api import client_of
from tests.support.processes import Process, Processes, free_port
from tests.support.settings import KEY

RATE = "30/1"
SETTINGS: dict[str, str | None] = {
    "upstream_rate": RATE,
    "upstream_timeout": "1.5",
    "submit_deadline": "5",
    "task_deadline": "60",
    "poll_after": "2",
    "poll_every": "1",
    "hold_recheck": "0.5",
}
FAULTS = (
    "slow=0.6:0.2,drip=0.4:0.05,accept-then-500:0.05,accept-then-reset:0.05,accept-then-hang:0.05,accept-then-html:0.02,"
    "empty-body:0.02,reset:0.03,hang:0.02,http-502:0.02,code-405=1:0.02,http-503=1:0.05,code-429=1:0.01,"
    "callback-before-answer:0.1,drop-callbacks:0.05,only-complete:0.1,repeat-callbacks=3:0.2,reorder-callbacks:0.1,"
    "delay-callbacks=7:0.1,poll-500=1:0.1,poll-stale=1:0.1,failed:0.05,refunded:0.03"
)
ORDERERS = 12
CREDITS = 1e6
STRIKE_EVERY = 1.5
# On a busy machine a process takes many seconds to start.
TIMEOUT = 180.0


@dataclass
class Member:
    """One of our processes, and how to start it again."""

    start: Callable[[], Awaitable[Process]]
    running: Process


@dataclass(frozen=True)
class Aftermath:
    """What a storm left behind: the accounts of both sides, the ids that callers were told, and the kills."""

    ledger: Ledger
    acknowledged: list[str]
    kills: int
    broken: list[str]
    # The credits that the upstream's account has lost.
    paid: float

    def counts(self) -> str:
        """The sums of both sides, to be shown."""
        counts = {"kills": self.kills, **self.ledger.counts()}
        return "; ".join(f"{what} {count}" for what, count in counts.items())

    def disagreements(self) -> list[str]:
        """Every promise that is broken, in words."""
        found = [*self.ledger.disagreements(), *self.broken]
        if sorted(self.acknowledged) != sorted(self.ledger.tasks):
            found.append(f"{len(self.acknowledged)} orders were acknowledged, {len(self.ledger.tasks)} are stored")
        if (charged := charged_by(self.ledger.made)) != self.paid:
            found.append(f"{self.paid} credits were taken from the account, and {charged} for tasks")
        rate = parse_rate(RATE)
        most = most_in_a_window(self.ledger.requests, rate.period - timedelta(milliseconds=1))
        if most > rate.requests:
            found.append(f"{most} requests reached the upstream within one window")
        return found


async def storm(
    processes: Processes, database_url: str, *, seconds: float, pause: float, workers: int, seed: int
) -> Aftermath:
    """
    Order sounds for this long while one process after the other is killed, then let everything settle.

    Each orderer waits for up to `pause` seconds before its next order.
    """
    rng = random.Random(seed)  # noqa: S311 - decides who is killed when
    retries = ",".join(["0.5"] * 4 + ["1"] * 30)
    sandbox = await processes.sandbox(
        "--seed", str(seed), "--callback-retries", retries, delay=0.8, rate=1000, fault=FAULTS, credits=CREDITS
    )
    crew = await _crew(processes, database_url, sandbox.url, workers)
    until = time.monotonic() + seconds
    orders = [asyncio.create_task(order_until(crew[0].running.url, until, pause, rng)) for _ in range(ORDERERS)]
    kills, broken = await _strike_until(crew, until, rng, database_url)
    acknowledged = [task_id for created in await asyncio.gather(*orders) for task_id in created]
    # A lease of the last one killed ends after the upstream's timeout and 15 s.
    await _until_settled(database_url, sandbox.url)
    broken += [
        line for log in processes.folder.glob("*.log") for line in log.read_text().splitlines() if "_broke" in line
    ]
    broken += await unbalanced(database_url)
    async with client_of(sandbox.url, None) as client:
        paid = CREDITS - (await client.get("/control")).raise_for_status().json()["credits"]
    return Aftermath(await read_ledger(database_url, sandbox.url), acknowledged, kills, broken, paid)


async def _crew(processes: Processes, database_url: str, sandbox_url: str, workers: int) -> list[Member]:
    port = free_port()
    public_url = f"http://127.0.0.1:{port}"

    async def serve() -> Process:
        return await processes.serve(database_url, sandbox_url, port=port, **SETTINGS)

    async def work() -> Process:
        return processes.worker(database_url, sandbox_url, public_url=public_url, **SETTINGS)

    return [Member(start, await start()) for start in (serve, *[work] * workers)]


async def _strike_until(
    crew: list[Member], until: float, rng: random.Random, database_url: str
) -> tuple[int, list[str]]:
    """
    Kill one process every moment and start it again; returns the number of kills.

    And what is wrong about the ledger of a key after any of them.

    The server is waited for: starting takes much of a small machine, and where no
    order comes in there is nothing to lose.
    """
    kills, wrong = 0, list[str]()
    while time.monotonic() < until:
        await asyncio.sleep(STRIKE_EVERY * rng.uniform(0.5, 1.5))
        member = rng.choice(crew)
        member.running.kill()
        wrong += await unbalanced(database_url)
        member.running = await member.start()
        kills += 1
    return kills, wrong


async def order_until(url: str, until: float, pause: float, rng: random.Random) -> list[str]:
    """Order one sound after the other, each until it is acknowledged; some are canceled at once."""
    acknowledged = []
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=5
    ) as client:
        while time.monotonic() < until:
            key = f"order-{rng.getrandbits(64):x}"
            task = await insist(client, "/v1/tasks", json={"prompt": "soft rain"}, headers={"Idempotency-Key": key})
            acknowledged.append(str(task["id"]))
            if rng.random() < 0.05:
                await insist(client, f"/v1/tasks/{task['id']}/cancel")
            await asyncio.sleep(rng.uniform(0, pause))
    return acknowledged


async def insist(client: httpx.AsyncClient, path: str, **request: Any) -> dict[str, Any]:
    """Repeat a request until there is a response, as a careful client does while a server is dead."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            answer = await client.post(path, **request)
            if answer.status_code in (200, 202, 409):
                body: dict[str, Any] = answer.json()
                return body
            assert answer.status_code == 503, answer.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, path
        await asyncio.sleep(0.5)


async def _until_settled(database_url: str, sandbox_url: str) -> None:
    """Wait until every row has ended and every callback that will be sent has arrived."""
    deadline = time.monotonic() + TIMEOUT
    while open_still := await _unsettled(database_url, sandbox_url):
        assert time.monotonic() < deadline, open_still
        await asyncio.sleep(0.3)  # a check costs both sides more than the sleep


async def _unsettled(database_url: str, sandbox_url: str) -> list[str]:
    owed = [
        f"the callbacks of {record['caller_task_id']} about {record['task_id']}"
        for record in await made_by(sandbox_url)
        if "drop-callbacks" not in record["faults"] and not {"complete", "error"} & set(record["delivered"])
    ]
    return owed or await unended(database_url)
