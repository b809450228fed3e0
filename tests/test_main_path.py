"""The main job with real processes: an order goes upstream once, and its sound comes back."""

from pathlib import Path

from tests.support.processes import order, running_service, submits_at, until_final


async def test_order_becomes_a_sound_by_callback(database_url: str, tmp_path: Path) -> None:
    async with running_service(tmp_path, database_url) as (client, sandbox):
        task = await order(client, "soft rain on a tin roof", sound_tempo=90, sound_key="Am", sound_loop=True)
        done = await until_final(client, task["id"])
        submits = await submits_at(sandbox)

    assert (done["status"], done["resolved_by"], done["charge"]) == ("succeeded", "callback", "charged")
    assert [clip["index"] for clip in done["clips"]] == [0, 1]
    assert [submit["caller_task_id"] for submit in submits] == [task["id"]]
