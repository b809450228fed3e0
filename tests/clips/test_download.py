"""A download gives a whole file of its kind, or a sentence that says why not."""

import asyncio
import gzip
import io
import tempfile
import wave
from pathlib import Path
from typing import IO

import pytest
from structlog.testing import capture_logs

from app.clips.download import DownloadedFile, DownloadFailed, audio_of, fetch
from app.egress import guarded_client
from app.errors import StorageUnavailable
from app.storage.store import Storage
from tests.egress.resolvers import LOOPBACK, SOON
from tests.support.receivers import Reply, receiving


def sound(seconds: int = 1) -> bytes:
    """Silence as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 8000, 8000 * seconds, "NONE", "not compressed"))
        audio.writeframes(bytes(16_000 * seconds))
    return file.getvalue()


async def download(reply: Reply, folder: Path, limit: int = 1_000_000) -> DownloadedFile:
    async with receiving(reply) as host, guarded_client(LOOPBACK, SOON) as client:
        return await fetch(client, host.url, audio_of(limit), Storage(f"file:{folder}/audio"))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(sound(), mtime=0)),
        ("gzip", sound()),
        ("identity", sound()),
        ("aws-chunked", sound()),
        ("UTF-8", sound()),
    ],
)
async def test_file_decides_not_the_name_of_its_coding(tmp_path: Path, coding: str, body: bytes) -> None:
    found = await download(Reply(200, (f"Content-Encoding: {coding}",), body=body), tmp_path)

    with found.file:
        assert (found.media_type, found.duration, found.size) == ("audio/wav", 1.0, len(sound()))


@pytest.mark.parametrize(
    ("coding", "body", "problem"),
    [
        ("br", b"\x8b\x07\x80sound\x03", "not a known type of audio"),
        ("gzip", gzip.compress(sound(), mtime=0)[:-9], "ends before its content coding does"),
        ("gzip", gzip.compress(sound(2), mtime=0), "larger than 20000 bytes"),
    ],
)
async def test_coded_file_that_cannot_be_had_is_explained(
    tmp_path: Path, coding: str, body: bytes, problem: str
) -> None:
    with pytest.raises(DownloadFailed, match=problem):
        await download(Reply(200, (f"Content-Encoding: {coding}",), body=body), tmp_path, limit=20_000)


async def test_download_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))

    found = await download(Reply(200, body=sound()), tmp_path)

    with found.file:
        assert found.size == len(sound())
    assert list((tmp_path / "audio").iterdir()) == []


class FullDisk(Storage):
    """A storage whose temporary files are on a device that is always full."""

    async def spool(self) -> IO[bytes]:
        return await asyncio.to_thread(Path("/dev/full").open, "r+b")


async def test_full_disk_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    storage = FullDisk(f"file:{tmp_path}/audio")
    async with receiving(Reply(200, body=sound())) as host, guarded_client(LOOPBACK, SOON) as client:
        with capture_logs() as lines, pytest.raises(StorageUnavailable):
            await fetch(client, host.url, audio_of(1_000_000), storage)

    assert [(line["event"], line["log_level"]) for line in lines] == [("storage_failed", "warning")]
