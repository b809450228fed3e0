"""Submits and calls that the sandbox refuses, its controls and its journal."""

from typing import Any

import httpx
import pytest

from tests.sandbox.running import codes, create_task, poll, running_sandbox, submit, unreachable_url


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": None}, 400),
        ({"prompt": "  "}, 400),
        ({"prompt": 5}, 400),
        ({"prompt": "x" * 500}, 200),
        ({"prompt": "x" * 501}, 413),
        ({"model": None}, 400),
        ({"model": "V4"}, 400),
        ({"model": "V5_5"}, 200),
        ({"soundTempo": None}, 200),
        ({"soundTempo": 1}, 200),
        ({"soundTempo": 300}, 200),
        ({"soundTempo": 0}, 400),
        ({"soundTempo": 301}, 400),
        ({"soundTempo": 90.5}, 400),
        ({"soundTempo": True}, 400),
        ({"soundKey": "F#m"}, 200),
        ({"soundKey": "any"}, 400),
        ({"soundKey": "H"}, 400),
        ({"soundLoop": "yes"}, 400),
        ({"grabLyrics": 1}, 400),
        ({"callBackUrl": None}, 400),
        ({"callBackUrl": "nowhere"}, 400),
        ({"callBackUrl": "ftp://soundpost.invalid/"}, 400),
        ({"callBackUrl": "http://[::1/"}, 400),
        ({"callBackUrl": "http://xn--/"}, 400),
        ({"callBackUrl": ["http://soundpost.invalid/"]}, 400),
        ({"title": "unknown fields are ignored"}, 200),
    ],
)
async def test_submit_is_validated_as_by_the_upstream(
    client: httpx.AsyncClient, fields: dict[str, Any], code: int
) -> None:
    answer = await submit(client, **{"prompt": "rain", **fields})

    assert (answer.status_code, answer.json()["code"]) == (200, code)
    assert (answer.json()["data"] is None) == (code != 200)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 9999])
async def test_body_that_is_no_json_object_is_an_invalid_submit(client: httpx.AsyncClient, body: bytes) -> None:
    assert codes(await client.post("/api/v1/generate/sounds", content=body)) == [400]


@pytest.mark.parametrize("header", ["", "sandbox2", "Bearer", "Bearer nonsense", "Bearer sandbox\xe9"])
async def test_wrong_key_is_401_as_status_and_as_code(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/api/v1/generate/credit", headers={b"Authorization": header.encode("latin-1")})

    assert (answer.status_code, answer.json()["code"]) == (401, 401)


async def test_rate_limits_submits_and_polls_and_counts_nothing_else() -> None:
    async with running_sandbox(rate=3, period=60) as client:
        task_id = await create_task(client)
        for _ in range(5):
            await client.get("/api/v1/generate/credit")
        answers = [await submit(client), await submit(client), await submit(client)]
        polled = await poll(client, task_id)

    assert codes(*answers) == [200, 200, 405]
    assert (answers[2].status_code, answers[2].json()["msg"]) == (200, "Rate limit exceeded")
    assert polled["code"] == 405


async def test_unknown_task_is_record_info_null(client: httpx.AsyncClient) -> None:
    answer = await poll(client, "0" * 32)

    assert (answer["code"], answer["msg"], answer["data"]) == (422, "recordInfo is null", None)
    assert (await poll(client, ""))["code"] == 400


async def test_wrong_path_or_method_is_code_404(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/api/v1/generate/nothing"), await client.get("/api/v1/generate/sounds")]

    assert codes(*answers) == [404, 404]
    assert (await client.get("/audio/none.wav")).status_code == 404


async def test_control_changes_a_running_sandbox() -> None:
    async with running_sandbox() as client:
        results = []
        for change in (
            {"credits": 2},
            {"credits": 10.5, "key_works": False},
            {"key_works": True, "maintenance": True},
            {"maintenance": False, "fault": "code-430"},
            {"fault": "", "api_key": "other"},
        ):
            assert (await client.post("/control", json=change)).status_code == 200
            results += codes(await submit(client))
        client.headers["Authorization"] = "Bearer other"
        results += codes(await submit(client))
        state = (await client.get("/control")).json()

    assert results == [429, 401, 455, 430, 401, 200]
    assert (state["credits"], state["key_works"], state["maintenance"], state["fault"]) == (8.0, True, False, "")


@pytest.mark.parametrize("change", [{"fault": "no-such"}, {"colour": "red"}, {"rate": -1}])
async def test_control_refuses_unknown_names_and_invalid_values(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    assert (await client.post("/control", json=change)).status_code == 422


async def test_journal_records_the_requests_of_each_task(client: httpx.AsyncClient) -> None:
    url = unreachable_url()
    task_id = await create_task(client, "rain [fault: only-complete]", callBackUrl=url)
    await poll(client, task_id)
    requests = (await client.get("/journal", params={"task_id": task_id, "kind": "request"})).json()
    submits = (await client.get("/journal", params={"path": "/api/v1/generate/sounds"})).json()

    assert [(entry["method"], entry["created"], entry["code"]) for entry in requests] == [
        ("POST", True, 200),
        ("GET", False, 200),
    ]
    own = [entry for entry in submits if entry["callback_url"] == url]
    assert [entry["caller_task_id"] for entry in own] == [url.split("/")[-2]]
    assert own[0]["faults"] == ["only-complete"]
