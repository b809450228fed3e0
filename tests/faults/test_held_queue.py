"""While the account accepts no submits no task fails, `/readyz` says why, and the queue continues by itself."""

from pathlib import Path
from typing import Any

import httpx

from tests.support.api import create_task, create_tasks, until_final
from tests.support.processes import service_process
from tests.support.sandbox import control, submits_at
from tests.support.wait import eventually

# What stops the upstream from taking orders, what ends that, and what an operator is told meanwhile.
OUTAGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"credits": 0}, {"credits": 1000}, "no credits"),
    ({"key_works": False}, {"key_works": True}, "refuses our key"),
    ({"fault": "html"}, {"fault": ""}, "block page"),
    ({"fault": "credits-falling"}, {"fault": "", "credits": 1000}, "no credits"),
]


async def test_queue_is_held_while_the_account_takes_nothing_and_goes_on_by_itself(
    database_url: str, tmp_path: Path
) -> None:
    settings = {"upstream_rate": "20/1", "hold_recheck": "1"}
    async with service_process(database_url, tmp_path, **settings) as (client, sandbox):
        # It is the account that takes nothing here, not the upstream's pace.
        await control(sandbox.url, rate=1000)
        for outage, recovery, detail in OUTAGES:
            await control(sandbox.url, **outage)
            # Two, since the first may be what takes the last credits.
            refused = await create_tasks(client, 2)
            await eventually(lambda detail=detail: _reports(client, detail), within=30)  # type: ignore[misc]
            waiting = [(await create_task(client))["id"] for _ in range(2)]
            await eventually(lambda waiting=waiting: _have_places(client, waiting))  # type: ignore[misc]

            await control(sandbox.url, **recovery)
            for task_id in refused + waiting:
                assert (await until_final(client, task_id, within=60))["status"] == "succeeded"
            await eventually(lambda: _is_released(client))
        submits = await submits_at(sandbox.url)

    assert sum(submit["created"] for submit in submits) == 4 * len(OUTAGES)


async def _is_released(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/readyz")).json()["checks"]["queue"]["status"] == "ok")


async def _reports(client: httpx.AsyncClient, detail: str) -> bool:
    answer = await client.get("/readyz")
    check = answer.json()["checks"]["queue"]
    return answer.status_code == 200 and check["status"] == "degraded" and detail in check["detail"]


async def _have_places(client: httpx.AsyncClient, task_ids: list[str]) -> bool:
    places = [(await client.get(f"/v1/tasks/{task_id}")).json()["queue_position"] for task_id in task_ids]
    return None not in places and len(set(places)) == len(places)
