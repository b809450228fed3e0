"""Callbacks are stored as received, and accepted only at the secret URL of their task."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import time
import zlib
from collections import Counter
from functools import partial
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from app.enums import Charge, TaskStatus
from app.keyring import Keyring
from app.models import Callback, Task
from tests.support.rows import event_types, reread
from tests.support.service import Service, serve
from tests.support.settings import SECRET_KEY
from tests.support.statements import recorded

# The same bytes at any time, so that tests have the same names in every process.
packed = partial(gzip.compress, mtime=0)

S = TaskStatus
CLIP = {"id": "clip-1", "audio_url": "https://cdn.example/1.mp3", "title": "Rain", "duration": 7.5}


def message(kind: str = "complete", task_id: str | None = "up-1", clips: Any = (CLIP,), code: int = 200) -> bytes:
    """A callback as the upstream writes it."""
    data = {"callbackType": kind, "task_id": task_id, "data": list(clips)}
    return json.dumps({"code": code, "msg": "said", "data": data}).encode()


COMPLETE = message()


async def test_callback_is_stored_before_the_response(service: Service) -> None:
    task = await _generating(service)

    answer = await _call(service, task, COMPLETE)

    assert (answer.status_code, answer.json()) == (200, {"status": "received"})
    done = await reread(service.database, task.id)
    assert (done.status, len(done.clips)) == (S.succeeded, 1)


async def test_callback_is_shown_as_it_was_received_without_its_secrets(service: Service) -> None:
    task = await _generating(service)
    url = f"https://sounds.example{service.callback_path(task.id)}"
    body = b'{"code":200,"param":"{\\"callBackUrl\\":\\"' + url.encode() + b'\\"}","data":{"status":"PENDING"}}'
    headers = {"Authorization": "Bearer canary", "X-Webhook-Signature": "canary", "X-Other": "shown"}

    await service.client.post(service.callback_path(task.id), content=body, headers=headers)

    [shown] = await _shown(service, task)
    assert shown["body"] == body.decode().replace(url.rpartition("/")[2], "***")
    assert shown["body_base64"] is None
    assert shown["outcome"] == "stale"
    assert (shown["headers"]["authorization"], shown["headers"]["x-webhook-signature"]) == ("***", "***")
    assert shown["headers"]["x-other"] == "shown"
    assert "canary" not in json.dumps(shown)


async def test_body_that_is_no_text_is_shown_encoded(service: Service) -> None:
    task = await _generating(service)

    await _call(service, task, b"\x00\xff")

    [shown] = await _shown(service, task)
    assert (shown["body"], shown["body_base64"], shown["outcome"]) == (None, "AP8=", "unreadable")


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[]", b"\xff", b"{" * 5000, b'{"code":NaN', b"<html>"])
async def test_unreadable_callback_is_stored_and_changes_nothing(service: Service, body: bytes) -> None:
    task = await _generating(service)

    with capture_logs() as lines:
        answer = await _call(service, task, body)

    assert answer.status_code == 200
    assert [line["log_level"] for line in lines if line["event"] == "callback"] == ["warning"]
    assert [shown["outcome"] for shown in await _shown(service, task)] == ["unreadable"]
    assert (await reread(service.database, task.id)).version == task.version


async def test_forged_callback_is_not_found_and_not_stored(service: Service) -> None:
    task, other = await _generating(service), await _generating(service)
    token = service.callback_path(task.id).rpartition("/")[2]
    paths = [
        f"/callbacks/{task.id}/{token[:-1]}",
        f"/callbacks/{task.id}/{token}x",
        f"/callbacks/{task.id}/{token.swapcase()}",
        f"/callbacks/{other.id}/{token}",
        f"/callbacks/{task.id.upper()}/{token}",
        f"/callbacks/{task.id}/%F0%9F%98%80",
        f"/callbacks/{'0' * 32}/{Keyring(SECRET_KEY).callback_token('0' * 32)}",
        "/callbacks/x/y",
    ]

    answers = [await service.client.post(path, content=COMPLETE) for path in paths]

    assert [(answer.status_code, answer.json()["type"]) for answer in answers] == [(404, "/problems/not-found")] * 8
    assert await _count(service) == 0
    assert (await reread(service.database, task.id)).status is S.generating


async def test_secrets_that_a_callback_repeats_are_not_shown(database_url: str) -> None:
    key = "an-upstream-key-of-the-tests"
    async with serve(database_url, upstream_api_key=key) as service:
        task = await _generating(service)
        path = service.callback_path(task.id)
        token = path.rpartition("/")[2]
        headers = {"X-Original-Uri": path, "Referer": f"https://sounds.example{path}", "X-Key": key, "X-Token": token}
        failed = {"code": 500, "msg": f"at {token} with {key}", "data": {"callbackType": "error", "task_id": "up-1"}}

        await service.client.post(path, headers=headers, content=json.dumps(failed))

        shown = (await service.client.get(f"/v1/tasks/{task.id}/callbacks")).text
        found = (await service.client.get(f"/v1/tasks/{task.id}")).text
    assert "at *** with ***" in shown
    assert "at *** with ***" in found
    assert {secret for secret in (token, key) if secret in shown + found} == set()


async def test_callback_needs_no_key(service: Service) -> None:
    task = await _generating(service)

    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False) as upstream:
        answer = await upstream.post(service.callback_path(task.id), content=COMPLETE)

    assert answer.status_code == 200


async def test_duplicates_get_the_same_answer_and_have_no_effect(service: Service) -> None:
    task = await _generating(service)

    answers = await asyncio.gather(*(_call(service, task, COMPLETE) for _ in range(10)))

    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b'{"status":"received"}')}
    assert Counter(shown["outcome"] for shown in await _shown(service, task)) == {"applied": 1, "stale": 9}
    assert await event_types(service.database, task.id) == ["task.created", "task.succeeded"]


async def test_duplicates_that_share_a_commit_change_a_task_once(service: Service) -> None:
    task = await _generating(service)

    await asyncio.gather(*(_call(service, task, message("first")) for _ in range(10)))

    assert Counter(shown["outcome"] for shown in await _shown(service, task)) == {"applied": 1, "stale": 9}
    assert (await reread(service.database, task.id)).version == task.version + 1
    assert await event_types(service.database, task.id) == ["task.created", "task.progressed"]


async def test_callback_is_a_few_statements_and_renders_nothing_that_nobody_gets(service: Service) -> None:
    task = await _generating(service)
    wanted = ["UPDATE tasks", *(f"INSERT INTO {table}" for table in ("events", "callbacks", "clips")), "COMMIT"]

    with recorded(service.database) as statements:
        await _call(service, task, COMPLETE)
        await _call(service, task, COMPLETE)

    sent = [sql for sql, _ in statements]
    written = [sql for sql in sent if sql.startswith(("UPDATE", "INSERT", "COMMIT"))]
    wanted += ["INSERT INTO callbacks", "COMMIT"]
    assert all(sql.startswith(begin) for sql, begin in zip(written, wanted, strict=True)), written
    # Whether anybody listens is read with the task.
    assert not [sql for sql in sent if sql.startswith("SELECT webhook_endpoints")]


async def test_callback_that_is_as_it_should_be_is_told_at_debug_level_only(service: Service) -> None:
    task = await _generating(service)

    with capture_logs() as lines:
        for body in (COMPLETE, COMPLETE, message(task_id="up-2")):
            await _call(service, task, body)

    told = {line["outcome"]: line["log_level"] for line in lines if line["event"] == "callback"}
    # Lines at debug level are there only where that level is on.
    assert told.pop("mismatch") == "warning"
    assert set(told.values()) <= {"debug"}


async def test_callback_about_another_upstream_task_changes_nothing(service: Service) -> None:
    task = await _generating(service)

    answer = await _call(service, task, message(task_id="up-2"))

    assert answer.status_code == 200
    assert [shown["outcome"] for shown in await _shown(service, task)] == ["mismatch"]
    assert (await reread(service.database, task.id)).version == task.version


@pytest.mark.parametrize("status", [S.submitting, S.unconfirmed])
async def test_callback_may_come_before_the_answer_to_the_submit(service: Service, status: S) -> None:
    task = await service.add_task(status, charge=Charge.possible)

    await _call(service, task, message("text", clips=()))
    adopted = await reread(service.database, task.id)
    await _call(service, task, COMPLETE)

    assert (adopted.status, adopted.upstream_task_id, adopted.charge) == (S.generating, "up-1", Charge.charged)
    assert (await reread(service.database, task.id)).status is S.succeeded


async def test_callbacks_may_come_in_any_order(service: Service) -> None:
    task = await _generating(service)
    silent = {**CLIP, "id": "clip-2", "audio_url": ""}
    both = [CLIP, {**CLIP, "id": "clip-2", "audio_url": "https://cdn.example/2.mp3"}]

    for body in (message("complete", clips=both), message("first", clips=[CLIP, silent]), message("text", clips=())):
        assert (await _call(service, task, body)).status_code == 200

    done = await reread(service.database, task.id)
    assert (done.status, len(done.clips)) == (S.succeeded, 2)
    assert [shown["outcome"] for shown in await _shown(service, task)] == ["applied", "stale", "stale"]


async def test_code_of_a_failure_counts_more_than_its_type(service: Service) -> None:
    task = await _generating(service)

    await _call(service, task, message("complete", clips=(), code=531))

    failed = (await service.client.get(f"/v1/tasks/{task.id}")).json()
    assert failed["error"] == {"code": "upstream_failed", "message": "said", "upstream_code": 531}
    assert (failed["status"], failed["charge"], failed["resolved_by"]) == ("failed", "refunded", "callback")


async def test_callback_of_a_megabyte_is_taken_and_a_larger_one_refused(service: Service) -> None:
    task = await _generating(service)
    limit = 1024 * 1024

    taken = await _call(service, task, COMPLETE + b" " * (limit - len(COMPLETE)))
    refused = await _call(service, task, b" " * (limit + 1))

    assert [answer.status_code for answer in (taken, refused)] == [200, 413]
    assert await _count(service) == 1


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", packed(COMPLETE)),
        ("x-gzip", packed(COMPLETE)),
        ("Deflate", zlib.compress(COMPLETE)),
        ("gzip, identity", packed(COMPLETE)),
        ("identity", COMPLETE),
        ("", COMPLETE),
        ("UTF-8", COMPLETE),
        ("gzip", COMPLETE),
    ],
)
async def test_coded_callback_is_taken(service: Service, coding: str, body: bytes) -> None:
    task = await _generating(service)

    answer = await service.client.post(
        service.callback_path(task.id), content=body, headers={"Content-Encoding": coding}
    )

    [kept] = (await service.client.get(f"/v1/tasks/{task.id}/callbacks")).json()["items"]
    assert answer.status_code == 200
    assert (kept["outcome"], kept["body"]) == ("applied", COMPLETE.decode())
    assert (await service.task(task.id))["status"] == "succeeded"


async def test_coded_callback_has_the_limit_of_any_other_and_an_unknown_coding_is_refused(service: Service) -> None:
    task = await _generating(service)
    answers = [
        await service.client.post(service.callback_path(task.id), content=body, headers={"Content-Encoding": coding})
        for coding, body in [("gzip", packed(bytes(1024 * 1024 + 1))), ("br", COMPLETE), ("zstd", COMPLETE)]
    ]
    kept = await _count(service)
    broken = await service.client.post(
        service.callback_path(task.id), content=packed(COMPLETE)[:-9], headers={"Content-Encoding": "gzip"}
    )
    callbacks = (await service.client.get(f"/v1/tasks/{task.id}/callbacks")).json()["items"]

    assert [answer.status_code for answer in answers] == [413, 415, 415]
    assert answers[1].headers["accept-encoding"] == "gzip, deflate, identity"
    assert (kept, broken.status_code) == (0, 200)
    assert [callback["outcome"] for callback in callbacks] == ["unreadable"]


async def test_signature_is_required_where_a_key_is_set(database_url: str) -> None:
    async with serve(database_url, callback_hmac_key="test-key") as service:
        task = await _generating(service)
        unsigned = await _call(service, task, COMPLETE)
        strange = [
            _signature("another-key"),
            _signature("test-key", timestamp=int(time.time()) - 600),
            {**_signature("test-key"), "X-Webhook-Signature": "é"},
            {**_signature("test-key"), "X-Webhook-Timestamp": "now"},
            _signature("test-key", task_id="up-2"),
        ]
        refused = [await _call(service, task, COMPLETE, headers) for headers in strange]
        kept = await _count(service)
        unreadable = await _call(service, task, b"{}", _signature("test-key"))
        signed = await _call(service, task, COMPLETE, _signature("test-key"))

    assert {answer.status_code for answer in [unsigned, *refused, unreadable]} == {401}
    assert kept == 0
    assert signed.status_code == 200


async def test_token_of_a_key_that_was_rotated_out_of_signing_still_opens(database_url: str) -> None:
    async with serve(database_url) as before:
        task = await _generating(before)
        path = before.callback_path(task.id)

    async with serve(database_url, secret_keys=f"a-newer-key-of-the-tests,{SECRET_KEY}") as during:
        assert during.callback_path(task.id) != path
        assert (await during.client.post(path, content=COMPLETE)).status_code == 200

    async with serve(database_url, secret_keys="a-newer-key-of-the-tests") as after:
        assert (await after.client.post(path, content=COMPLETE)).status_code == 404


async def test_callbacks_are_counted_by_what_they_did(service: Service) -> None:
    task = await _generating(service)
    for body in (COMPLETE, COMPLETE, b"{}"):
        await _call(service, task, body)
    await service.client.post(f"/callbacks/{task.id}/forged", content=COMPLETE)

    metrics = (await service.client.get("/metrics")).text

    counted = {outcome: f'soundpost_callbacks_total{{outcome="{outcome}"}} 1.0' in metrics for outcome in OUTCOMES}
    assert counted == dict.fromkeys(OUTCOMES, True)


OUTCOMES = ("applied", "stale", "unreadable", "forged")


async def test_callbacks_are_listed_in_pages(service: Service) -> None:
    task = await _generating(service)
    for number in range(3):
        await _call(service, task, f"{number}".encode())

    first = await service.client.get(f"/v1/tasks/{task.id}/callbacks?limit=2")
    second = await service.client.get(first.links["next"]["url"])

    assert [item["body"] for item in first.json()["items"] + second.json()["items"]] == ["0", "1", "2"]
    assert second.json()["next_cursor"] is None


async def test_callbacks_beyond_a_hundred_are_applied_but_not_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.callbacks.service.MAX_KEPT", 3)
    task = await _generating(service)
    for _ in range(5):
        assert (await _call(service, task, b"nonsense")).status_code == 200

    await _call(service, task, COMPLETE)

    assert [shown["outcome"] for shown in await _shown(service, task)] == ["unreadable"] * 3
    assert (await reread(service.database, task.id)).status is S.succeeded
    metrics = (await service.anonymous.get("/metrics")).text
    assert 'soundpost_callbacks_total{outcome="unreadable"} 5.0' in metrics


async def test_reports_add_at_most_fifty_clips(service: Service) -> None:
    task = await _generating(service)
    for first in range(0, 70, 35):
        clips = [{**CLIP, "id": f"clip-{number}"} for number in range(first, first + 35)]
        await _call(service, task, message("first", clips=clips))

    assert len((await reread(service.database, task.id)).clips) == 50


async def test_page_of_callbacks_ends_where_its_bodies_exceed_a_mebibyte(service: Service) -> None:
    task = await _generating(service)
    sizes = [700_000, 300_000, 100, 900_000, 1_000_000, 5]
    for size in sizes:
        await _call(service, task, b"x" * size)

    path, cursor = f"/v1/tasks/{task.id}/callbacks", None
    pages: list[list[int]] = []
    while not pages or cursor:
        answer = await service.client.get(path, params={"cursor": cursor} if cursor else {})
        page = answer.json()
        pages.append([len(item["body"]) for item in page["items"]])
        cursor = page["next_cursor"]
        assert ("link" in answer.headers) == (cursor is not None)

    assert pages == [[700_000, 300_000, 100], [900_000], [1_000_000, 5]]


async def test_callbacks_are_paged_in_the_order_of_the_databases_clock(service: Service) -> None:
    task = await _generating(service)
    # The ids of a replica whose clock is behind are smaller than those that were stored before.
    for number in (3, 1, 2):
        await _call(service, task, b"%d" % number)
        async with service.database.writes.begin() as session:
            newest = select(Callback).order_by(Callback.received_at.desc()).limit(1)
            callback = (await session.scalars(newest)).one()
            await session.execute(update(Callback).where(Callback.id == callback.id).values(id=f"{number:032x}"))

    path, cursor = f"/v1/tasks/{task.id}/callbacks", None
    seen: list[str] = []
    while not seen or cursor:
        params = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await service.client.get(path, params=params)).json()
        seen += [item["body"] for item in page["items"]]
        cursor = page["next_cursor"]

    assert seen == ["3", "1", "2"]


async def _generating(service: Service) -> Task:
    return await service.add_task(S.generating, upstream_task_id="up-1")


async def _call(service: Service, task: Task, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    encoded = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    return await service.client.post(service.callback_path(task.id), content=body, headers=encoded)


async def _shown(service: Service, task: Task) -> list[dict[str, Any]]:
    answer = (await service.client.get(f"/v1/tasks/{task.id}/callbacks")).raise_for_status()
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def _count(service: Service) -> int:
    async with service.database.reads() as session:
        return await session.scalar(select(func.count()).select_from(Callback)) or 0


def _signature(key: str, timestamp: int | None = None, task_id: str = "up-1") -> dict[str, str]:
    timestamp = timestamp or int(time.time())
    digest = hmac.digest(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": base64.b64encode(digest).decode()}


@pytest.mark.parametrize("form", ["/{}", "{}/", "{}//", "//{}//"])
async def test_callback_at_a_path_with_slashes_too_many_is_taken(service: Service, form: str) -> None:
    task = await _generating(service)
    path = service.callback_path(task.id)

    answers = [
        await service.client.post(f"{service.client.base_url}".rstrip("/") + form.format(spelt), content=COMPLETE)
        for spelt in (path, path.replace("/", "//"))
    ]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert (await service.task(task.id))["status"] == "succeeded"
