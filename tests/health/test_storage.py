"""The storage is written seldom, and what fails, hangs or is full is found at the next look."""

import shutil
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.errors import StorageUnavailable
from app.health.routes import ReadinessProbe
from app.health.storage import StorageCheck
from app.storage.store import Storage
from tests.support.service import serve

ADVICE = (
    "it does not store a file: check SOUNDPOST_STORAGE_URL (for S3 the AWS_* variables too), its free space and its "
    "permissions"
)


@pytest.fixture
def silent_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
        }.items():
            monkeypatch.setenv(name, value)
        yield "s3://sounds/audio"


async def test_file_is_written_once_in_a_while_and_at_once_after_a_failure_elsewhere(tmp_path: Path) -> None:
    storage = Storage(f"file:{tmp_path}")
    check = StorageCheck(storage, 0).check
    first = await check()
    _replace_by_a_file(tmp_path / "probe")
    not_written = await check()
    with pytest.raises(StorageUnavailable):
        await storage.read("no/such/file", 0, 1)
    broken = [await check(), await check()]
    (tmp_path / "probe").unlink()
    mended = await check()

    assert [found.status for found in (first, not_written, *broken, mended)] == ["ok", "ok", "down", "down", "ok"]
    assert broken[0].detail == ADVICE


async def test_failure_that_nothing_else_meets_is_found_by_the_next_write(tmp_path: Path) -> None:
    check = StorageCheck(Storage(f"file:{tmp_path}"), 0, write_every=timedelta()).check
    assert (await check()).status == "ok"
    _replace_by_a_file(tmp_path / "probe")

    assert (await check()).status == "down"


async def test_folder_that_is_gone_is_found_at_the_next_look(tmp_path: Path) -> None:
    check = StorageCheck(Storage(f"file:{tmp_path}/audio"), 0).check
    assert (await check()).status == "ok"
    shutil.rmtree(tmp_path / "audio")
    gone = await check()
    (tmp_path / "audio").mkdir()

    assert (gone.status, gone.detail) == (
        "down",
        f"No temporary file can be opened beside the stored files: No such file or directory. {ADVICE}",
    )
    assert (await check()).status == "ok"


async def test_storage_that_hangs_delays_no_probe(
    silent_bucket: str, migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadinessProbe, "answer_within", timedelta(seconds=0.3))
    database_url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with serve(database_url, storage_url=silent_bucket) as service:
        answer = await service.client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (503, "down")
    assert answer.elapsed < timedelta(seconds=2)
    assert answer.json()["checks"]["database"]["status"] == "ok"
    assert answer.json()["checks"]["storage"] == {
        "status": "down",
        "detail": "no answer within 0.3 seconds: check SOUNDPOST_STORAGE_URL and the disk or network behind it",
    }


def _replace_by_a_file(folder: Path) -> None:
    """Let no file be written under this folder, for whatever user."""
    folder.rmdir()
    folder.write_text("a file where the folder should be")
