"""The main job with real processes: an order goes upstream once, and its sound comes back."""

from pathlib import Path

from tests.support.api import create_task, until_final
from tests.support.processes import service_process
from tests.support.sandbox import submits_at


async def test_task_becomes_a_sound_by_callback(database_url: str, tmp_path: Path) -> None:
    async with service_process(database_url, tmp_path) as (client, sandbox):
        task = await create_task(client, "soft rain on a tin roof", sound_tempo=90, sound_key="Am", sound_loop=True)
        done = await until_final(client, task["id"])
        submits = await submits_at(sandbox.url)

    assert (done["status"], done["resolved_by"], done["charge"]) == ("succeeded", "callback", "charged")
    assert [clip["index"] for clip in done["clips"]] == [0, 1]
    assert [submit["caller_task_id"] for submit in submits] == [task["id"]]
