"""The clips of a report, cleaned of everything that could do harm further in."""

import json

import pytest

from app.upstream.suno.reports import read_callback
from app.upstream.types import ReportedClip

A = "https://cdn.example/a.mp3"


def read(items: bytes) -> tuple[ReportedClip, ...]:
    report = read_callback(b'{"code":200,"data":{"callbackType":"first","task_id":"t-1","data":[%s]}}' % items)
    assert report is not None
    return report.clips


def clips(*items: object) -> tuple[ReportedClip, ...]:
    return read(json.dumps(items).encode()[1:-1])


def test_silent_clips_are_reported_too_and_never_with_their_stream() -> None:
    silent = {"id": "x", "audio_url": "", "stream_audio_url": "https://cdn.example/stream"}
    ready, unready = clips({"id": "y", "audio_url": A}, silent)
    assert (ready.has_audio, unready.has_audio) == (True, False)
    assert unready == ReportedClip(upstream_clip_id="x")


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        None,
        5,
        [],
        "ftp://cdn.example/a",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///a",
        "//cdn/a",
        "https://a b",
        "https://cdn.example/None.mp3",
        "https://cdn.example/audio/null",
        "https://cdn.example/undefined.wav?x=1",
        "https://cdn.example/none/a.mp3",
        "https://pipe.example/?item_id=None",
        "https://cdn.example/.mp3",
        "https://cdn.example/(null).mp3",
        "https://cdn.example/[object Object]",
        "https://cdn.example/{audio_id}.mp3",
        "https://cdn.example/%7B%7D.mp3",
        "https://a/\x00",
        "https://a/\ud800",
        "https://a/" + "x" * 4096,
    ],
)
def test_audio_is_an_http_url_or_nothing(url: object) -> None:
    clip = clips({"id": "x", "audio_url": url, "source_audio_url": url, "image_url": url})[0]
    assert (clip.audio_url, clip.source_audio_url, clip.image_url, clip.has_audio) == (None, None, None, False)


@pytest.mark.parametrize("url", ["http://1.2.3.4:80/a?x=1#f", "HTTPS://CDN.example", "https://cdn.example/é"])
def test_http_urls_in_any_notation_are_accepted(url: str) -> None:
    assert clips({"audio_url": f" {url} "})[0].audio_url == url


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("https://cdn.example/soft rain.mp3", "https://cdn.example/soft%20rain.mp3"),
        ("https://cdn.example/a.mp3?name=soft rain", "https://cdn.example/a.mp3?name=soft%20rain"),
        ("https://cdn.example/a\u00a0b.mp3", "https://cdn.example/a%C2%A0b.mp3"),
        ("https://cdn.example/a%20b c.mp3", "https://cdn.example/a%20b%20c.mp3"),
        ("https://cdn.example/a\n.mp3", "https://cdn.example/a.mp3"),
        ("https://cdn.example/nonesuch.mp3", "https://cdn.example/nonesuch.mp3"),
        ("https:\\/\\/cdn.example\\/a.mp3", "https://cdn.example/a.mp3"),
        ("https://cdn.example/a.mp3?x=1&amp;y=2", "https://cdn.example/a.mp3?x=1&y=2"),
        ("\ufeff'https://cdn.example/a.mp3' ", "https://cdn.example/a.mp3"),
        ("<https://cdn.example/a.mp3>", "https://cdn.example/a.mp3"),
    ],
)
def test_link_that_is_almost_a_url_is_made_one(sent: str, read: str) -> None:
    assert clips({"audio_url": sent})[0].audio_url == read


@pytest.mark.parametrize(
    "confession",
    [
        {"status": "error"},
        {"status": "FAILED"},
        {"state": "generation_failed"},
        {"error_message": "Song clip failed moderation"},
        {"errorCode": 500},
        {"error": {"message": "moderated"}},
        {"fail_reason": "moderated"},
        {"isFailed": True},
        {"success": False},
        {"success": "false"},
    ],
)
def test_clip_that_says_it_failed_is_not_ready(confession: dict[str, object]) -> None:
    assert clips({"id": "x", "audio_url": A, "source_audio_url": A} | confession)[0].has_audio is False


@pytest.mark.parametrize(
    "boast",
    [
        {"status": "complete"},
        {"error": None, "errorCode": 0},
        {"status": "streaming"},
        {"error": []},
        {"errorMessage": "success", "error_code": 200},
        {"failed": False, "success": True},
    ],
)
def test_clip_that_says_nothing_bad_is_ready(boast: dict[str, object]) -> None:
    assert clips({"id": "x", "audio_url": A} | boast)[0].has_audio is True


@pytest.mark.parametrize("duration", [None, "", "long", -1, 0, True, [], 1e300, 10**400, "nan", "inf", 90_000])
def test_duration_that_cannot_be_is_none(duration: object) -> None:
    assert clips({"audio_url": A, "duration": duration})[0].duration is None


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_beyond_json_do_not_spoil_the_rest(number: bytes) -> None:
    clip = read(b'{"audio_url":"%s","duration":%s}' % (A.encode(), number))[0]
    assert (clip.audio_url, clip.duration) == (A, None)


def test_text_of_a_clip_is_made_fit_for_any_database() -> None:
    item = rb'{"id":"x","title":"R\u0000ain \ud83d","tags":"' + b"\xff" + b'","model_name":7,"audio_url":null}'
    assert read(item) == (ReportedClip(upstream_clip_id="x", title="Rain", tags="\ufffd"),)


def test_long_text_and_long_lists_are_cut() -> None:
    cut = clips(*[{"id": "x", "title": "t" * 5000}] * 60)
    assert len(cut) == 50
    assert cut[0].title == "t" * 1000
