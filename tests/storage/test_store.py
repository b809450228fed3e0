"""A folder and a bucket behave alike, and what refuses may be back in a moment."""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from app.errors import StorageUnavailable
from app.health.storage import StorageCheck
from app.models import Clip
from app.storage.store import CHUNK, Storage
from tests.support.service import is_archived, serve_with_sandbox
from tests.support.wait import eventually

KEY = "sha256/ab/cdef.wav"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    given = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": endpoint, "REGION": "us-east-1"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    httpx.put(f"{endpoint}/audio", trust_env=False).raise_for_status()
    yield "s3://audio/of/ours"
    # Another server in this process would have the same buckets.
    httpx.post(f"{endpoint}/moto-api/reset", trust_env=False).raise_for_status()
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file:{tmp_path}/audio"
    url: str = request.getfixturevalue("bucket")
    return url


async def read_all(storage: Storage, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in storage.stream(KEY, start, end)])


async def test_file_is_written_once(storage_url: str) -> None:
    storage = Storage(storage_url)
    content = os.urandom(CHUNK * 2 + 7)

    assert await storage.write(KEY, io.BytesIO(content), len(content), "audio/wav")
    assert not await storage.write(KEY, io.BytesIO(content), len(content), "audio/wav")
    assert await read_all(storage, 0, len(content)) == content
    assert await read_all(storage, CHUNK - 3, CHUNK + 3) == content[CHUNK - 3 : CHUNK + 3]


async def test_small_file_is_read_whole_or_not_at_all(storage_url: str) -> None:
    storage = Storage(storage_url)
    missing = await storage.read_small(KEY, 5)
    await storage.write(KEY, io.BytesIO(b"whole"), 5, "application/json")

    assert missing is None
    assert await storage.read_small(KEY, 5) == b"whole"
    assert await storage.read_small(KEY, 4) is None


async def test_file_that_lost_its_end_is_written_again(storage_url: str) -> None:
    storage = Storage(storage_url)
    await storage.write(KEY, io.BytesIO(b""), 0, "audio/wav")

    assert await storage.write(KEY, io.BytesIO(b"whole"), 5, "audio/wav")
    assert await storage.read(KEY, 0, 5) == b"whole"


async def test_removed_file_is_gone_and_removing_it_again_is_fine(storage_url: str) -> None:
    storage = Storage(storage_url)
    await storage.write(KEY, io.BytesIO(b"whole"), 5, "audio/wav")
    await storage.remove(KEY)
    await storage.remove(KEY)

    with pytest.raises(StorageUnavailable):
        await storage.read(KEY, 0, 5)


async def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    await Storage(f"file:{tmp_path}/audio").probe()

    assert [path for path in (tmp_path / "audio").rglob("*") if path.is_file()] == []


async def test_probe_of_a_bucket_succeeds(bucket: str) -> None:
    await Storage(bucket).probe()


@pytest.mark.parametrize("wrapping", ["{}\n", '"{}"', "\ufeff{} "])
async def test_what_surrounds_an_aws_variable_is_no_part_of_it(
    bucket: str, wrapping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.setenv(name, wrapping.format(os.environ[name]))

    await Storage(bucket).probe()


@pytest.mark.parametrize("value", ["http://[::1", "nonsense", "http://\x07"])
async def test_aws_variable_that_cannot_work_is_a_failure_of_the_storage(
    bucket: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)

    with pytest.raises(StorageUnavailable):
        await Storage(bucket).probe()


async def test_storage_that_is_nearly_full_is_degraded(storage_url: str) -> None:
    storage = Storage(storage_url)

    empty, nearly_full = [await StorageCheck(storage, room).check() for room in (1_000_000, 10**18)]

    assert (empty.status, nearly_full.status) == ("ok", "degraded")
    assert re.search(r"only \d+ MB are free, less than 1000000000000 MB: make room", nearly_full.detail)


async def test_presigned_link_reads_from_the_bucket(bucket: str) -> None:
    storage = Storage(bucket)
    await storage.write(KEY, io.BytesIO(b"whole"), 5, "audio/wav")
    link = await storage.presigned(KEY, timedelta(minutes=1))
    assert link is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(link)

    assert (answer.content, answer.headers["content-type"]) == (b"whole", "audio/wav")


async def test_folder_has_no_presigned_links(tmp_path: Path) -> None:
    assert await Storage(f"file:{tmp_path}/audio").presigned(KEY, timedelta(minutes=1)) is None


async def test_storage_that_is_back_is_used_again(tmp_path: Path) -> None:
    blocker = tmp_path / "audio"
    blocker.write_text("a file where the folder should be")
    storage = Storage(f"file:{blocker}")
    with pytest.raises(StorageUnavailable):
        await storage.probe()
    blocker.unlink()

    await storage.probe()


@pytest.mark.parametrize("use", ["read", "read_small", "write", "remove", "probe", "free_space", "spool"])
async def test_every_use_that_fails_has_the_next_check_write_again(tmp_path: Path, use: str) -> None:
    blocker = tmp_path / "audio"
    blocker.write_text("a file where the folder should be")
    storage = Storage(f"file:{blocker}")
    arguments = {
        "read": (KEY, 0, 1),
        "read_small": (KEY, 1),
        "write": (KEY, io.BytesIO(b"x"), 1, "audio/wav"),
        "remove": (KEY,),
    }

    with pytest.raises(StorageUnavailable):
        await getattr(storage, use)(*arguments.get(use, ()))

    assert storage.failures == 1


async def test_relative_folder_is_under_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await Storage("file:var/audio").write(KEY, io.BytesIO(b"whole"), 5, "audio/wav")

    assert (tmp_path / "var/audio" / KEY).read_bytes() == b"whole"


async def test_audio_on_s3_is_served_by_us_or_by_a_redirect(migrated_sqlite: Path, tmp_path: Path, bucket: str) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with serve_with_sandbox(database_url, tmp_path, storage_url=bucket) as service:
        task = await service.archived()
        clip = task["clips"][0]
        served = await service.anonymous.get(clip["audio_url"], headers={"Range": "bytes=10-19"})
        whole = await service.anonymous.get(clip["audio_url"])
        service.services.settings.s3_redirect = True
        redirect = await service.anonymous.get(clip["audio_url"])
        followed = await service.upstream.get(redirect.headers["location"])
        head = await service.anonymous.head(clip["audio_url"])

    assert (served.status_code, served.content) == (206, whole.content[10:20])
    assert (redirect.status_code, redirect.headers["cache-control"]) == (307, "private, no-store")
    assert followed.content == whole.content
    assert (head.status_code, head.headers["content-length"]) == (200, str(clip["size"]))


async def test_bucket_without_a_temporary_folder_is_not_ready(
    bucket: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_with_sandbox(database_url, tmp_path, storage_url=bucket) as service:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        refused = await service.client.get("/readyz")
        task_id = await service.create_task()
        await service.until(task_id, lambda task: task["status"] == "succeeded")

        async def is_explained() -> bool:
            async with service.database.reads() as session:
                problems = (await session.scalars(select(Clip.archive_error))).all()
            return any("No temporary file can be opened" in (problem or "") for problem in problems)

        await eventually(is_explained)
        monkeypatch.setattr(tempfile, "tempdir", None)
        await service.until(task_id, is_archived)

    check = refused.json()["checks"]["storage"]
    assert (refused.status_code, check["status"]) == (503, "down")
    assert "No temporary file can be opened in the temporary folder (TMPDIR)" in check["detail"]
