"""A client of the vendor's API gets the vendor's callbacks, sent as our deliveries."""

import json
from pathlib import Path

from tests.support.processes import service_process
from tests.support.receivers import receiving
from tests.support.service import serve

LOOPBACK = "127.0.0.0/8"


async def test_callback_url_gets_the_vendors_stages(tmp_path: Path, database_url: str) -> None:
    settings = {"egress_allow": LOOPBACK, "webhook_schedule": "0,0.2,0.2"}
    async with (
        receiving(500, 200) as receiver,
        service_process(database_url, tmp_path, **settings) as (client, sandbox),
    ):
        (await client.post(f"{sandbox.url}/control", json={"delay": 1})).raise_for_status()
        request = {"prompt": "rain", "model": "V5", "callBackUrl": receiver.url, "customMode": True}
        answer = (await client.post("/api/v1/generate/sounds", json=request)).json()
        await receiver.until(3)
        task_id = answer["data"]["taskId"]
        record = (await client.get("/api/v1/generate/record-info", params={"taskId": task_id})).json()

    bodies = [json.loads(received.body) for received in receiver.requests]
    stages = {body["data"]["callbackType"]: body for body in bodies}
    assert set(stages) == {"first", "complete"}
    assert {body["data"]["task_id"] for body in bodies} == {task_id}
    assert [len(stages[stage]["data"]["data"]) for stage in ("first", "complete")] == [1, 2]
    assert (record["data"]["status"], stages["complete"]["code"]) == ("SUCCESS", 200)
    assert all(received.headers["webhook-signature"].startswith("v1,") for received in receiver.requests)


async def test_canceled_task_is_called_back_as_an_error(database_url: str) -> None:
    async with receiving() as receiver, serve(database_url, runs_workers=True, egress_allow=LOOPBACK) as service:
        request = {"prompt": "rain", "model": "V5", "callBackUrl": receiver.url}
        answer = (await service.client.post("/api/v1/generate/sounds", json=request)).json()
        await service.client.post(f"/v1/tasks/{answer['data']['taskId']}/cancel")
        await receiver.until(1)

    body = json.loads(receiver.requests[0].body)
    assert (body["code"], body["msg"]) == (500, "The task was canceled.")
    assert body["data"]["callbackType"] == "error"
