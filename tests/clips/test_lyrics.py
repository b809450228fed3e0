"""Lyrics are fetched, stored and served as subtitles."""

import asyncio
import shutil
from pathlib import Path

from app.clips.subtitles import Cue, cues, srt, vtt
from app.upstream.types import LyricWord
from tests.support.service import serve_with_sandbox


async def test_lyrics_are_stored_and_served_as_subtitles(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task_id = await service.create_task("soft rain on a tin roof", grab_lyrics=True)
        task = await service.until(
            task_id, lambda task: all(clip["lyrics"] for clip in task["clips"] or [{"lyrics": 0}])
        )
        events = (await service.client.get(f"/v1/tasks/{task_id}/events")).json()["items"]
        clip = f"/v1/tasks/{task_id}/clips/0"
        srt_answer, vtt_answer = [await service.client.get(f"{clip}/lyrics.{kind}") for kind in ("srt", "vtt")]

    words = task["clips"][0]["lyrics"]
    assert " ".join(word["word"].strip() for word in words) == "soft rain on a tin roof"
    assert all(word["start"] < word["end"] for word in words)
    assert srt_answer.text.startswith("1\n00:00:00,000 --> 00:00:0")
    assert vtt_answer.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:0")
    assert vtt_answer.headers["content-type"] == "text/vtt; charset=utf-8"
    assert [event["type"] for event in events].count("clip.archived") == 2
    assert task["version"] > events[-1]["version"] or events[-1]["type"] == "clip.archived"


async def test_missing_lyrics_are_no_error(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        wordless, broken, unasked = await asyncio.gather(
            service.archived("soft rain [fault:lyrics-null]", grab_lyrics=True),
            service.archived("soft rain [fault:lyrics-500]", grab_lyrics=True),
            service.archived("soft rain"),
        )
        await service.until(wordless["id"], lambda task: [clip["lyrics"] for clip in task["clips"]] == [[], []])
        answers = [
            await service.client.get(f"/v1/tasks/{task['id']}/clips/0/lyrics.{kind}")
            for task in (wordless, broken, unasked)
            for kind in ("srt", "vtt")
        ]
        still = await service.task(broken["id"])

    assert {answer.status_code for answer in answers} == {404}
    assert [clip["lyrics"] for clip in still["clips"]] == [None, None]
    assert [clip["lyrics"] for clip in unasked["clips"]] == [None, None]


async def test_lyrics_are_requested_once_per_clip(migrated_sqlite: Path, tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'soundpost.db')}"
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task_id = await service.create_task("soft rain", grab_lyrics=True)
        await service.until(task_id, lambda task: all(clip["lyrics"] for clip in task["clips"] or [{"lyrics": 0}]))
        journal = (await service.upstream.get("/journal", params={"kind": "request"})).json()

    asked = [entry for entry in journal if entry["path"].endswith("/get-timestamped-lyrics")]
    assert len(asked) == 2


def test_new_line_begins_when_full_after_a_pause_and_at_a_line_break() -> None:
    words = [
        LyricWord("[Verse]\n", 0, 1),
        LyricWord("soft ", 1, 1.5),
        LyricWord("rain", 1.5, 2),
        LyricWord("again", 4, 5),
        LyricWord("a" * 40, 5, 6),
        LyricWord(" ", 6, 7),
    ]

    assert cues(words) == [
        Cue("[Verse]", 0, 1),
        Cue("soft rain", 1, 2),
        Cue("again", 4, 5),
        Cue("a" * 40, 5, 6),
    ]


def test_times_and_escapes_follow_each_format() -> None:
    words = [LyricWord("<b> --> &", 3661.0005, 3662.9996)]

    assert srt(words) == "1\n01:01:01,000 --> 01:01:03,000\n<b> --> &\n"
    assert vtt(words) == "WEBVTT\n\n01:01:01.000 --> 01:01:03.000\n&lt;b&gt; --&gt; &amp;\n"


def test_no_words_give_no_cues() -> None:
    assert cues([]) == []
    assert cues([LyricWord(" \n", 0, 1)]) == []
