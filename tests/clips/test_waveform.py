"""The waveform of stored audio: made once by another process, kept beside the file and removed with it."""

import asyncio
import io
import json
import random
import shutil
import sys
import time
import wave
from array import array
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.clips import decoder
from app.clips.waveform import NONE, Waveforms
from app.models import Clip, StoredObject, Task
from app.services import Services
from app.storage.store import waveform_key
from tests.support.rows import add_key, add_task
from tests.support.service import serve_with_sandbox, services_of
from tests.support.wait import eventually

TONE = (Path(__file__).with_name("tone.mp3")).read_bytes()
KEY = "sha256/ab/cd.mp3"


def wav(samples: "array[int]", rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def clip_of(key: str, now: datetime) -> Clip:
    return Clip(index=0, storage_key=key, archived_at=now, created_at=now, attempts=0, source_audio_url="http://h/a")


async def made_of(services: Services, content: bytes, key: str = KEY) -> dict[str, Any]:
    await services.storage.write(key, io.BytesIO(content), len(content), "audio/mpeg")
    made: dict[str, Any] = json.loads(await Waveforms(services.storage, services.database).read(key, len(content)))
    return made


@pytest.fixture
async def services(migrated_sqlite: Path, tmp_path: Path) -> AsyncIterator[Services]:
    url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with services_of(url, storage_url=f"file:{tmp_path}/audio") as services:
        yield services


async def test_waveform_of_an_mp3_rises_with_its_sound(services: Services) -> None:
    # Two seconds of a tone that grows from silence.
    made = await made_of(services, TONE)
    quarters = [max(made["peaks"][i * len(made["peaks"]) // 4 :][:100]) for i in range(4)]

    assert 1.9 < made["duration"] < 2.2
    assert decoder.MAX_PEAKS // 4 < len(made["peaks"]) <= decoder.MAX_PEAKS
    assert all(quieter < louder for quieter, louder in pairwise(quarters))


async def test_loudest_sample_of_each_part_is_its_peak(services: Services) -> None:
    silence = array("h", [0] * 16_000 * 60)
    silence[16_000 * 30] = -32768

    made = await made_of(services, wav(silence), "sha256/ab/ce.wav")

    assert made["duration"] == 60
    assert decoder.MAX_PEAKS // 2 < len(made["peaks"]) <= decoder.MAX_PEAKS
    assert max(made["peaks"]) == 1
    assert abs(made["peaks"].index(1) - len(made["peaks"]) / 2) <= 1
    assert sum(made["peaks"]) < 1.1


@pytest.mark.parametrize("content", [b"ID3" + bytes(5000), b"RIFF\xff\xff\xff\xffWAVE" + bytes(500), b"fLaC", b"x"])
async def test_what_cannot_be_decoded_has_no_waveform(services: Services, content: bytes) -> None:
    assert await made_of(services, content) == json.loads(NONE)


async def test_broken_audio_ends_in_some_waveform_and_in_little_time(services: Services) -> None:
    rng = random.Random(7)  # noqa: S311 - breaks files, not for security
    began = time.monotonic()
    for number in range(12):
        content = bytearray(TONE)
        for _ in range(200):
            content[rng.randrange(len(content))] = rng.randrange(256)
        made = await made_of(services, bytes(content), f"sha256/ab/{number}.mp3")
        assert len(made["peaks"]) <= decoder.MAX_PEAKS

    assert time.monotonic() - began < 30


async def test_waveform_is_made_once_for_all_who_ask(services: Services, tmp_path: Path) -> None:
    await services.storage.write(KEY, io.BytesIO(TONE), len(TONE), "audio/mpeg")
    waveforms = Waveforms(services.storage, services.database)
    async with services.database.transaction() as (session, now):
        session.add(StoredObject(key=KEY, attempts=0))
    task = await add_task(services.database, await add_key(services.database))
    async with services.database.transaction() as (session, now):
        stored = await session.get_one(Task, task.id)
        stored.clips.append(clip_of(KEY, now))

    first = await asyncio.gather(*(waveforms.read(KEY, len(TONE)) for _ in range(5)))
    (tmp_path / "audio" / KEY).unlink()
    again = await Waveforms(services.storage, services.database).read(KEY, len(TONE))

    assert {*first} == {again}
    assert (tmp_path / "audio" / waveform_key(KEY)).read_bytes() == again


async def test_waveform_of_a_file_that_no_clip_has_any_more_is_not_kept(services: Services, tmp_path: Path) -> None:
    await made_of(services, TONE)

    assert not (tmp_path / "audio" / waveform_key(KEY)).exists()


async def test_waveform_is_removed_with_its_file(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.archived()
        async with service.database.reads() as session:
            clips = (await session.get_one(Task, task["id"])).clips
        waveforms = Waveforms(service.services.storage, service.database)
        for clip in clips:
            await waveforms.read(clip.storage_key or "", clip.size or 0)
        kept = list((tmp_path / "audio").rglob("*.peaks.json"))
        (await service.client.delete(f"/v1/tasks/{task['id']}")).raise_for_status()
        await eventually(lambda: not [path for path in (tmp_path / "audio").rglob("*") if path.is_file()])

    assert len(kept) == len(clips)


async def test_decoder_gets_none_of_our_secrets_and_little_memory(tmp_path: Path) -> None:
    # A module in its place tells what it was given.
    (tmp_path / f"{decoder.LIBRARY}.py").write_text(
        "import json, os, resource, sys\n"
        "class MiniaudioError(Exception): pass\n"
        "class StreamableSource: pass\n"
        "limits = [resource.getrlimit(each) for each in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]\n"
        "sys.stderr.write(json.dumps([sorted(os.environ), limits, sorted(m for m in sys.modules if m[:3] == 'app')]))\n"
        "def stream_any(*_, **__): return ()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", decoder.__file__, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    printed, told = await process.communicate()
    names, limits, modules = json.loads(told)

    assert json.loads(printed) == json.loads(NONE)
    assert (names, modules) == (["LC_CTYPE", "PYTHONPATH"], []) or (names, modules) == (["PYTHONPATH"], [])
    assert limits == [[decoder.MAX_MEMORY] * 2, [decoder.MAX_SECONDS] * 2]
