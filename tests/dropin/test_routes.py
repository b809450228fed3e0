"""A client written from the vendor's pages, with only its base URL and key changed."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dropin.schemas import callback
from app.enums import Charge, ErrorCode, Priority, TaskStatus
from app.errors import NotFound
from app.keyring import Keyring
from app.models import Clip, Task
from app.signed_urls import SignedUrls
from app.tasks.schemas import read_task
from tests.support.clock import MORNING
from tests.support.processes import service_process
from tests.support.rows import add_key, add_task
from tests.support.service import Service
from tests.support.wait import eventually

REQUEST: dict[str, Any] = {
    "prompt": "A soft rain ambience with distant thunder and gentle wind",
    "model": "V5",
    "soundLoop": False,
    "soundTempo": 120,
    "soundKey": "Any",
    "grabLyrics": False,
}
KEYS = [
    "Any",
    *("Cm", "C#m", "Dm", "D#m", "Em", "Fm", "F#m", "Gm", "G#m", "Am", "A#m", "Bm"),
    *("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"),
]
SIGNED_URLS = SignedUrls(Keyring("a-secret-of-sixteen"), "https://sounds.example", timedelta(days=1), lambda: 0.0)
RUNNING = {"PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS"}


class VendorRefused(Exception):
    """The body's code is not 200."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code


class VendorClient:
    """The vendor's API as its pages show it: every answer in an envelope, errors too."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def generate(self, **fields: Any) -> str:
        data = await self._call("POST", "/api/v1/generate/sounds", json=fields)
        assert list(data) == ["taskId"]
        return str(data["taskId"])

    async def record_info(self, task_id: str) -> dict[str, Any]:
        data: dict[str, Any] = await self._call("GET", "/api/v1/generate/record-info", params={"taskId": task_id})
        return data

    async def credit(self) -> float:
        left: float = await self._call("GET", "/api/v1/generate/credit")
        return left

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = await self._http.request(method, path, **options)
        body = answer.raise_for_status().json()
        assert list(body) == ["code", "msg", "data"]
        assert type(body["code"]) is int
        assert type(body["msg"]) is str
        if body["code"] != 200:
            assert body["data"] is None
            raise VendorRefused(body["code"], body["msg"])
        return body["data"]


@pytest.fixture
async def vendor(tmp_path: Path, database_url: str) -> AsyncIterator[VendorClient]:
    """The vendor's client at a whole service."""
    async with service_process(database_url, tmp_path) as (http, _):
        yield VendorClient(http)


async def test_vendors_client_gets_its_sound(vendor: VendorClient) -> None:
    task_id = await vendor.generate(**REQUEST)
    first_seen = await vendor.record_info(task_id)
    await eventually(lambda: _is_over(vendor, task_id), 30)
    record = await vendor.record_info(task_id)
    left = await vendor.credit()

    assert type(left) is float
    assert first_seen["status"] in RUNNING | {"SUCCESS"}
    assert (record["taskId"], record["parentMusicId"], record["operationType"]) == (task_id, "", "sounds")
    assert (record["status"], record["errorCode"], record["errorMessage"]) == ("SUCCESS", None, None)
    assert type(record["createTime"]) is int
    assert json.loads(record["param"]) == REQUEST
    assert record["response"]["taskId"] == task_id
    for sound in record["response"]["sunoData"]:
        _assert_sound(sound)


async def test_every_documented_request_is_accepted(service: Service) -> None:
    vendor = VendorClient(service.client)
    requests = [
        *({"prompt": "rain", "model": "V5_5", "soundKey": key} for key in KEYS),
        {"prompt": "x" * 500, "model": "V5"},
        {**REQUEST, "soundTempo": 1},
        {**REQUEST, "soundTempo": 300.0},
        {**REQUEST, "soundTempo": None, "soundLoop": None, "soundKey": None, "grabLyrics": None, "callBackUrl": None},
        {**REQUEST, "callBackUrl": "https://api.example.com/callback"},
        {**REQUEST, "title": "unknown fields are ignored", "style": {"a": 1}},
    ]

    task_ids = [await vendor.generate(**fields) for fields in requests]

    assert len(set(task_ids)) == len(requests)
    assert {(await vendor.record_info(task_id))["status"] for task_id in task_ids} == {"PENDING"}


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "V5"}, 400, "prompt"),
    ({"prompt": "rain"}, 400, "model"),
    ({**REQUEST, "prompt": ""}, 400, "prompt"),
    ({**REQUEST, "prompt": "x" * 501}, 413, "prompt"),
    ({**REQUEST, "prompt": "\0"}, 400, "prompt"),
    ({**REQUEST, "model": "V4"}, 400, "model"),
    ({**REQUEST, "soundTempo": 0}, 400, "soundTempo"),
    ({**REQUEST, "soundTempo": 301}, 400, "soundTempo"),
    ({**REQUEST, "soundTempo": 1.5}, 400, "soundTempo"),
    ({**REQUEST, "soundTempo": "120"}, 400, "soundTempo"),
    ({**REQUEST, "soundKey": "H"}, 400, "soundKey"),
    ({**REQUEST, "soundLoop": "yes"}, 400, "soundLoop"),
    ({**REQUEST, "grabLyrics": 1}, 400, "grabLyrics"),
    ({**REQUEST, "callBackUrl": "http://127.0.0.1/"}, 400, "callBackUrl"),
    ({**REQUEST, "callBackUrl": "nonsense"}, 400, "callBackUrl"),
]


async def test_refused_request_names_the_vendors_field(service: Service) -> None:
    answers = [await service.client.post("/api/v1/generate/sounds", json=fields) for fields, _, _ in REFUSED]

    envelopes = [(answer.status_code, answer.json()["code"], answer.json()["msg"]) for answer in answers]
    assert [(status, code) for status, code, _ in envelopes] == [(200, code) for _, code, _ in REFUSED]
    assert all(message.startswith(field) for (_, _, message), (_, _, field) in zip(envelopes, REFUSED, strict=True))
    assert all(answer.json()["data"] is None for answer in answers)


UNREADABLE: list[tuple[dict[str, Any], int]] = [
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    ({"content": b'{"prompt": NaN}', "headers": {"content-type": "application/json"}}, 400),
    ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 400),
    ({"content": b"x" * 70_000, "headers": {"content-type": "application/json"}}, 413),
    ({"content": b"", "headers": {"content-type": "application/json"}}, 400),
]


async def test_unreadable_request_is_answered_in_the_envelope(service: Service) -> None:
    answers = [await service.client.post("/api/v1/generate/sounds", **options) for options, _ in UNREADABLE]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (200, code) for _, code in UNREADABLE
    ]


async def test_wrong_path_and_method_are_404_in_the_envelope(service: Service) -> None:
    wrong = [("GET", "/api/v1/generate/sounds"), ("GET", "/api/v1/generate"), ("POST", "/api/v1/generate/extend")]

    answers = [await service.client.request(method, path) for method, path in wrong]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(200, 404)] * len(wrong)


async def test_bad_key_is_401_in_http_and_in_the_envelope(service: Service) -> None:
    calls = [("POST", "sounds"), ("GET", "record-info?taskId=x"), ("GET", "credit")]

    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        answers = [
            await service.client.request(method, f"/api/v1/generate/{path}", headers=headers, json=REQUEST)
            for method, path in calls
        ]
        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(401, 401)}
        assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}


async def test_missing_task_id_is_400_and_a_task_of_another_key_is_404(service: Service) -> None:
    theirs = (await add_task(service.database, await add_key(service.database, "another"))).id
    path = "/api/v1/generate/record-info"

    missing = [(await service.client.get(path + query)).json()["code"] for query in ("", "?taskId=", "?task_id=x")]
    foreign = {(await service.client.get(path, params={"taskId": id_})).content for id_ in (theirs, "0" * 32, "x", "é")}

    assert missing == [400] * 3
    assert len(foreign) == 1
    assert json.loads(foreign.pop()) == {"code": 404, "msg": NotFound.advice, "data": None}


async def test_canceled_task_reads_as_failed(service: Service) -> None:
    task = await service.add_task(TaskStatus.canceled)

    record = await VendorClient(service.client).record_info(task.id)

    assert (record["status"], record["errorCode"]) == ("GENERATE_AUDIO_FAILED", 500)
    assert record["errorMessage"] == "The task was canceled."


FAILURES = [
    (ErrorCode.invalid_request, 422, "CREATE_TASK_FAILED", 422),
    (ErrorCode.content_rejected, None, "SENSITIVE_WORD_ERROR", 400),
    (ErrorCode.insufficient_credits, None, "CREATE_TASK_FAILED", 429),
    (ErrorCode.upstream_failed, 531, "GENERATE_AUDIO_FAILED", 531),
    (ErrorCode.audio_missing, None, "GENERATE_AUDIO_FAILED", 500),
    (ErrorCode.outcome_unknown, None, "CREATE_TASK_FAILED", 500),
    (ErrorCode.deadline_exceeded, None, "GENERATE_AUDIO_FAILED", 500),
]


@pytest.mark.parametrize(("error", "upstream_code", "word", "code"), FAILURES)
async def test_failure_has_the_vendors_status_and_code(
    service: Service, error: ErrorCode, upstream_code: int | None, word: str, code: int
) -> None:
    columns = {"error_code": error, "error_message": "why", "upstream_code": upstream_code}
    task = await service.add_task(TaskStatus.failed, **columns)

    record = await VendorClient(service.client).record_info(task.id)

    assert (record["status"], record["errorCode"], record["errorMessage"]) == (word, code, "why")


def test_callback_body_has_the_vendors_shape() -> None:
    task = _finished()

    first, complete = (callback(task, read_task(task, {}, SIGNED_URLS), stage) for stage in ("first", "complete"))

    assert (first["code"], first["data"]["callbackType"], first["data"]["task_id"]) == (200, "first", task.id)
    assert (complete["msg"], complete["data"]["callbackType"]) == ("All generated successfully.", "complete")
    assert complete["data"]["data"] == [
        {
            "id": "8551-662c",
            "audio_url": "https://cdn.example/a.mp3",
            "source_audio_url": "https://cdn.example/a.mp3",
            "stream_audio_url": "https://cdn.example/a.mp3",
            "source_stream_audio_url": "https://cdn.example/a.mp3",
            "image_url": "",
            "source_image_url": "",
            "prompt": "soft rain",
            "model_name": "V5",
            "title": "Rain",
            "tags": "",
            "createTime": 1772352000000,
            "duration": 11.2,
        }
    ]


def test_error_callback_has_no_data() -> None:
    task = _finished(status=TaskStatus.failed, error_code=ErrorCode.content_rejected, error_message="no", clips=[])

    body = callback(task, read_task(task, {}, SIGNED_URLS), "error")

    assert body == {"code": 400, "msg": "no", "data": {"callbackType": "error", "task_id": task.id, "data": None}}


async def _is_over(vendor: VendorClient, task_id: str) -> bool:
    return (await vendor.record_info(task_id))["status"] not in RUNNING


def _assert_sound(sound: dict[str, Any]) -> None:
    texts = {"id", "audioUrl", "sourceAudioUrl", "streamAudioUrl", "sourceStreamAudioUrl", "imageUrl"}
    texts |= {"sourceImageUrl", "prompt", "modelName", "title", "tags"}
    assert set(sound) == texts | {"createTime", "duration"}
    assert {type(sound[name]) for name in texts} == {str}
    assert type(sound["createTime"]) is int
    assert type(sound["duration"]) is float
    assert sound["audioUrl"].startswith("http")


def _finished(**columns: Any) -> Task:
    clip = Clip(
        id="c",
        index=0,
        upstream_clip_id="8551-662c",
        title="Rain",
        duration=11.2,
        upstream_audio_url="https://cdn.example/a.mp3",
        created_at=MORNING,
    )
    given: dict[str, Any] = {"status": TaskStatus.succeeded, "clips": [clip], **columns}
    return Task(
        id="2fac9f72",
        version=5,
        prompt="soft rain",
        model="V5",
        sound_loop=False,
        sound_key="Any",
        grab_lyrics=False,
        priority=Priority.normal,
        labels={},
        charge=Charge.charged,
        created_at=MORNING,
        updated_at=MORNING,
        **given,
    )


@pytest.mark.parametrize("path", ["//api/v1/generate/{}", "/api/v1//generate/{}/", "/api//v1/generate//{}//"])
async def test_path_with_slashes_too_many_is_taken(service: Service, path: str) -> None:
    url = str(service.client.base_url).rstrip("/") + path
    placed = await service.client.post(url.format("sounds"), json={"prompt": "rain", "model": "V5"})
    task_id = placed.json()["data"]["taskId"]
    record = await service.client.get(url.format("record-info"), params={"taskId": task_id, "v": "1"})
    nothing = await service.client.get(url.format("nothing"))

    assert record.json()["data"]["taskId"] == task_id
    assert nothing.json()["code"] == 404
