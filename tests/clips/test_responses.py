"""Files are served with ranges, entity tags and names; a second implementation and curl agree."""

import asyncio
import json
import unicodedata
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import FileResponse

from app.clips.responses import MAX_NAME_LENGTH, file_name
from app.storage.store import CHUNK
from tests.support.api import timed
from tests.support.receivers import receiving
from tests.support.servers import serving
from tests.support.service import Service, serve_with_sandbox
from tests.support.settings import KEY, OTHER_KEY
from tests.support.wait import eventually

RANGES = [
    None,
    "bytes=0-",
    "bytes=0-0",
    "bytes=0-99",
    "bytes=100-199",
    "bytes=100000-",
    "bytes=0-999999999",
    "bytes=-1",
    "bytes=-500",
    "bytes=-999999999",
    "bytes=262140-262150",
]
UNSATISFIABLE = ["bytes=999999999-", "bytes=999999999-9999999999", "bytes=-0"]
NOT_OURS = ["bytes=5-4", "bytes=abc", "bytes=-", "items=0-5", "bytes=0-5,10-15", "bytes=" + "9" * 5000 + "-", "bytes"]


async def test_ranges_match_a_second_implementation(migrated_sqlite: Path, tmp_path: Path) -> None:
    async with serve_with_sandbox(copy_of(migrated_sqlite, tmp_path), tmp_path) as service:
        task = await service.archived(sound_tempo=1)
        assert task["clips"][0]["size"] > CHUNK
        path = next((tmp_path / "audio").rglob(f"{task['clips'][0]['sha256'][2:]}.wav"))
        async with second_implementation(path) as other:
            for wanted in RANGES + UNSATISFIABLE:
                headers = {"Range": wanted} if wanted else {}
                ours = await service.anonymous.get(task["clips"][0]["audio_url"], headers=headers)
                theirs = await service.upstream.get(other, headers=headers)
                assert facts_of(ours) == facts_of(theirs), wanted


async def test_range_after_the_end_is_416_and_invalid_ranges_are_ignored(migrated_sqlite: Path, tmp_path: Path) -> None:
    async with serve_with_sandbox(copy_of(migrated_sqlite, tmp_path), tmp_path) as service:
        clip = (await service.archived())["clips"][0]
        refused = [await get(service, clip, Range=wanted) for wanted in UNSATISFIABLE]
        ignored = [await get(service, clip, Range=wanted) for wanted in NOT_OURS]

    assert {(answer.status_code, answer.headers["content-range"]) for answer in refused} == {
        (416, f"bytes */{clip['size']}")
    }
    assert {(answer.status_code, len(answer.content)) for answer in ignored} == {(200, clip["size"])}


async def test_response_headers_describe_the_file(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        clip = (await service.archived("soft rain on a tin roof"))["clips"][0]
        whole = await get(service, clip)
        head = await service.anonymous.head(clip["audio_url"])

    assert whole.headers["etag"] == f'"{clip["sha256"]}"'
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert whole.headers["accept-ranges"] == "bytes"
    name = "filename=\"Soft Rain On A.wav\"; filename*=UTF-8''Soft%20Rain%20On%20A.wav"
    assert whole.headers["content-disposition"] == f"inline; {name}"
    assert head.content == b""
    assert {k: v for k, v in head.headers.items() if k not in ("date", "x-request-id")} == {
        k: v for k, v in whole.headers.items() if k not in ("date", "x-request-id")
    }


async def test_link_in_a_wait_and_in_the_final_webhook_waits_for_the_copy(database_url: str, tmp_path: Path) -> None:
    slow = "soft rain [fault:audio-slow=1]"
    async with receiving() as receiver, serve_with_sandbox(database_url, tmp_path) as service:
        order = {"prompt": slow, "webhook_url": receiver.url}
        waited = await service.client.post("/v1/tasks", json=order, headers={"Prefer": "wait=30"})
        clips = waited.json()["clips"]
        early = await asyncio.gather(*(service.anonymous.get(clip["audio_url"]) for clip in clips))
        await receiver.until(1)
        told = json.loads(receiver.requests[0].body)["data"]["task"]["clips"]
        later = [(await service.anonymous.get(clip["audio_url"])).content for clip in told]

    assert waited.json()["status"] == "succeeded"
    assert None in [clip["archived_at"] for clip in clips]
    assert [(answer.status_code, answer.content[:4]) for answer in early] == [(200, b"RIFF")] * len(clips)
    assert later == [answer.content for answer in early]


async def test_audio_that_does_not_come_in_time_is_409_with_the_time_to_come_back(
    database_url: str, tmp_path: Path
) -> None:
    async with serve_with_sandbox(database_url, tmp_path, sandbox={"delay": 0}) as service:
        service.services.clips.audio_wait = timedelta(seconds=0.5)
        task_id = await service.create_task("soft rain [fault:audio-hang]")
        clip = (await service.until(task_id, lambda task: task["status"] == "succeeded"))["clips"][0]
        answer, seconds = await timed(service.anonymous.get(clip["audio_url"]))

    assert (answer.status_code, answer.headers["retry-after"]) == (409, "5")
    assert answer.json()["type"] == "/problems/not-archived-yet"
    assert 0.5 <= seconds < 5


async def test_stop_of_the_process_ends_a_wait_for_audio(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, sandbox={"delay": 0}) as service:
        task_id = await service.create_task("soft rain [fault:audio-hang]")
        clip = (await service.until(task_id, lambda task: task["status"] == "succeeded"))["clips"][0]
        waiting = asyncio.create_task(timed(service.anonymous.get(clip["audio_url"])))
        await eventually(lambda: task_id in dict(service.services.wakeups.subscriptions()))
        service.services.wakeups.close()
        answer, seconds = await waiting

    assert answer.status_code == 409
    assert seconds < 5


async def test_known_etag_gets_304(migrated_sqlite: Path, tmp_path: Path) -> None:
    async with serve_with_sandbox(copy_of(migrated_sqlite, tmp_path), tmp_path) as service:
        clip = (await service.archived())["clips"][0]
        etag = f'"{clip["sha256"]}"'
        known = [await get(service, clip, **{"If-None-Match": tag}) for tag in (etag, f"W/{etag}", "*", f'"x", {etag}')]
        other = await get(service, clip, **{"If-None-Match": '"x"'})
        same = await get(service, clip, Range="bytes=0-9", **{"If-Range": etag})
        changed = [
            await get(service, clip, Range="bytes=0-9", **{"If-Range": tag})
            for tag in ('"x"', f"W/{etag}", "Sun, 22 Nov 2026 17:00:00 GMT")
        ]

    assert {(answer.status_code, answer.content, answer.headers["etag"]) for answer in known} == {(304, b"", etag)}
    assert (other.status_code, len(other.content)) == (200, clip["size"])
    assert (same.status_code, len(same.content)) == (206, 10)
    assert {(answer.status_code, len(answer.content)) for answer in changed} == {(200, clip["size"])}


async def test_curl_resumes_a_broken_download(migrated_sqlite: Path, tmp_path: Path) -> None:
    async with serve_with_sandbox(copy_of(migrated_sqlite, tmp_path), tmp_path) as service:
        clip = (await service.archived())["clips"][0]
        whole = (await get(service, clip)).content
        part = tmp_path / "part.wav"
        part.write_bytes(whole[:100_000])
        curl = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--fail", "--noproxy", "*", "-C", "-", "-o", part, str(clip["audio_url"])
        )
        code = await curl.wait()

    assert code == 0
    assert part.read_bytes() == whole


async def test_only_a_key_or_a_signed_link_gives_access(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path, api_keys=f"tests:{KEY},others:{OTHER_KEY}") as service:
        task = await service.archived()
        url = httpx.URL(task["clips"][0]["audio_url"])
        bare, absent = url.copy_with(query=None), url.copy_with(path=f"/v1/tasks/{'0' * 32}/clips/0/audio", query=None)
        stranger = {"Authorization": f"Bearer {OTHER_KEY}"}
        forged = [
            await service.anonymous.get(link)
            for link in (
                url.copy_set_param("signature", "x"),
                url.copy_set_param("expires", "99999999999"),
                url.copy_set_param("expires", "soon"),
                url.copy_with(path=absent.path),
                url.copy_with(path=url.path.replace("/0/", "/1/")),
                url.copy_with(path=url.path.replace("/0/", "/x/")),
            )
        ]
        # Either is enough, whatever the other is worth.
        opened = [
            await service.anonymous.get(url),
            await service.client.get(bare),
            await service.anonymous.get(url, headers={"Authorization": "Bearer of-another-service"}),
            await service.anonymous.get(url, headers={"Authorization": "Basic eDp5"}),
            await service.anonymous.get(url, headers=stranger),
            await service.client.get(url.copy_set_param("signature", "x")),
        ]
        nothing = [
            await service.anonymous.get(bare, headers=stranger),
            await service.client.get(absent),
            *[
                await service.client.get(str(bare).replace("/0/", f"/{index}/"))
                for index in ("9", "00", "-1", "x", "٠")
            ],
        ]
        locked = await service.anonymous.get(bare)

    assert {answer.status_code for answer in opened} == {200}
    assert {answer.status_code for answer in forged} == {401}
    assert len({answer.content for answer in forged}) == 1
    assert locked.status_code == 401
    assert {(answer.status_code, answer.content) for answer in nothing} == {(404, nothing[0].content)}


async def test_expired_link_is_401(migrated_sqlite: Path, tmp_path: Path) -> None:
    async with serve_with_sandbox(copy_of(migrated_sqlite, tmp_path), tmp_path, link_ttl=0.001) as service:
        clip = (await service.archived())["clips"][0]
        answer = await service.anonymous.get(clip["audio_url"])

    assert answer.status_code == 401


async def test_cover_is_stored_and_served(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived()
        url = f"/v1/tasks/{task['id']}/clips/0/image"
        original = (await service.upstream.get(task["clips"][0]["image_url"])).content

        async def is_kept() -> bool:
            return (await service.client.get(url)).status_code == 200

        await eventually(is_kept)
        answer = await service.client.get(url)
        locked = await service.anonymous.get(url)

    assert (answer.content, answer.headers["content-type"]) == (original, "image/png")
    assert answer.headers["content-disposition"].endswith(".png")
    assert locked.status_code == 401


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Soft Rain", "Soft Rain.mp3"),
        (None, "sound.mp3"),
        ("", "sound.mp3"),
        ("...", "sound.mp3"),
        ("../../etc/passwd", "etc passwd.mp3"),
        ('a"b\r\nSet-Cookie: x=1', "a b Set-Cookie x=1.mp3"),
        ("雨の音", "雨の音.mp3"),
        ("exe.\u202egpj", "exe. gpj.mp3"),
        ("x" * 200, "x" * MAX_NAME_LENGTH + ".mp3"),
    ],
)
def test_title_becomes_a_safe_file_name(title: str | None, name: str) -> None:
    assert file_name(title, "audio/mpeg") == name


@given(st.text())
def test_any_title_becomes_a_safe_file_name(title: str) -> None:
    name = file_name(title, "audio/mpeg")
    assert not set(name) & set('/\\:*?"<>|')
    assert not name.startswith((".", " "))
    assert all(unicodedata.category(character)[0] != "C" for character in name)


def copy_of(migrated: Path, folder: Path) -> str:
    file = folder / "soundpost.db"
    file.write_bytes(migrated.read_bytes())
    return f"sqlite+aiosqlite:///{file}"


async def get(service: Service, clip: Any, **headers: str) -> httpx.Response:
    return await service.anonymous.get(clip["audio_url"], headers=headers)


def facts_of(answer: httpx.Response) -> tuple[int, bytes, str | None, str | None]:
    content = b"" if answer.is_error else answer.content
    return answer.status_code, content, answer.headers.get("content-range"), answer.headers.get("accept-ranges")


def second_implementation(path: Path) -> Any:
    """Starlette's own way to serve a file, which is not ours."""
    config = uvicorn.Config(FileResponse(path), port=0, lifespan="off", log_config=None)
    return serving(uvicorn.Server(config))


async def test_page_of_any_origin_may_read_a_signed_link(database_url: str, tmp_path: Path) -> None:
    page = {"Origin": "https://player.example"}
    preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range, authorization"}
    async with serve_with_sandbox(database_url, tmp_path) as service:
        url = httpx.URL((await service.archived())["clips"][0]["audio_url"])
        image = url.copy_with(path=url.path.replace("/audio", "/image"))
        expired = url.copy_set_param("expires", "1")
        asked = [await service.anonymous.options(link, headers=page | preflight) for link in (url, image)]
        part = await service.anonymous.get(url, headers=page | {"Range": "bytes=0-9"})
        refused = await service.anonymous.get(expired, headers=page)
        by_key = await service.client.get(url.copy_with(query=None), headers=page)
        without_link = await service.anonymous.options(url.copy_with(query=None), headers=page | preflight)

    for answer in asked:
        allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert (answer.status_code, answer.headers["access-control-allow-methods"]) == (204, "GET, HEAD")
        assert {"range", "authorization"} <= allowed
    assert (part.status_code, refused.status_code) == (206, 401)
    for answer in (*asked, part, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    assert "Content-Range" in part.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in by_key.headers
    assert without_link.status_code == 405
