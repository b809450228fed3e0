"""The client against real servers on loopback: its requests, and the outcome of every fault."""

import asyncio
import gzip
import json
import logging
import socket
import time
import zlib
from datetime import timedelta
from decimal import Decimal
from functools import partial

import httpx
import pytest
from structlog.testing import capture_logs

from app.observability.metrics import Metrics
from app.upstream.suno.client import SunoApi
from app.upstream.types import HoldReason, LyricWord, Outcome, Result, SoundRequest, Stage
from tests.support.receivers import Behaviour, Connection
from tests.upstream.suno.servers import (
    answering,
    close_at_once,
    drip,
    hang,
    keep_silent,
    refuse_plainly,
    reset_after_reading,
    reset_mid_answer,
    serving,
    talk_nonsense,
)

# The same bytes at any time, so that tests have the same names in every process.
packed = partial(gzip.compress, mtime=0)

KEY = "planted-key-canary"
TOKEN = "planted-token-canary"
CALLBACK_URL = f"https://sound.example/callbacks/0197c0de/{TOKEN}"
REQUEST = SoundRequest(
    "soft rain", "V5", sound_loop=True, sound_tempo=120, sound_key="F#m", grab_lyrics=False, callback_url=CALLBACK_URL
)
CREATED = b'{"code":200,"msg":"success","data":{"taskId":"abc"}}'
LONG = timedelta(seconds=10)
SHORT = timedelta(seconds=0.5)


def client(url: str, timeout: float | httpx.Timeout = 5, **limits: int) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {KEY}", "Accept-Encoding": "identity"}
    return httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, trust_env=False, limits=httpx.Limits(**limits)
    )


async def submit_to(url: str, deadline: timedelta = LONG) -> Result[str]:
    async with client(url) as http:
        return await SunoApi(http, KEY, deadline).submit(REQUEST)


async def submit(behave: Behaviour, deadline: timedelta = LONG) -> Result[str]:
    async with serving(behave) as server:
        return await submit_to(server.url, deadline)


async def test_submit_is_sent_in_the_upstreams_format() -> None:
    async with serving(answering(200, CREATED)) as server:
        answer = await submit_to(server.url)
    head, body = server.requests[0].head, server.requests[0].body
    assert answer == Result(Outcome.ok, "abc", 200, "success")
    assert head.startswith("POST /api/v1/generate/sounds HTTP/1.1\r\n")
    assert json.loads(body) == {
        "prompt": "soft rain",
        "model": "V5",
        "soundLoop": True,
        "soundTempo": 120,
        "soundKey": "F#m",
        "grabLyrics": False,
        "callBackUrl": CALLBACK_URL,
    }


async def test_tempo_left_to_the_upstream_is_not_named() -> None:
    request = SoundRequest(
        "rain", "V5", sound_loop=False, sound_tempo=None, sound_key="Any", grab_lyrics=True, callback_url=CALLBACK_URL
    )
    async with serving(answering(200, CREATED)) as server, client(f"{server.url}/mirror") as http:
        await SunoApi(http, KEY, LONG).submit(request)
    head, body = server.requests[0].head, server.requests[0].body
    assert head.startswith("POST /mirror/api/v1/generate/sounds HTTP/1.1\r\n")
    assert "soundTempo" not in json.loads(body)


async def test_refused_port_means_not_sent() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        answer = await submit_to(f"http://127.0.0.1:{unheard.getsockname()[1]}")
    assert answer == Result(Outcome.not_sent, message="nothing was sent (ConnectError)")


async def test_unresolvable_name_means_not_sent() -> None:
    # A label beyond 63 characters is refused by the resolver itself, so no name server is asked.
    answer = await submit_to(f"http://{'a' * 64}.invalid")
    assert answer.outcome is Outcome.not_sent


@pytest.mark.parametrize("url", ["", "gopher://127.0.0.1"])
async def test_url_to_which_nothing_can_be_sent_holds(url: str) -> None:
    answer = await submit_to(url)
    assert (answer.outcome, answer.hold_reason) == (Outcome.held, HoldReason.unsendable)


async def test_failed_tls_means_not_sent() -> None:
    async with serving(refuse_plainly) as server:
        answer = await submit_to(server.url.replace("http:", "https:"))
    assert answer == Result(Outcome.not_sent, message="nothing was sent (ConnectError)")


async def test_silent_tls_server_means_not_sent() -> None:
    async with serving(keep_silent) as server, client(server.url.replace("http:", "https:"), timeout=0.2) as http:
        answer = await SunoApi(http, KEY, LONG).submit(REQUEST)
    assert answer == Result(Outcome.not_sent, message="nothing was sent (ConnectTimeout)")


@pytest.mark.parametrize(("patience", "deadline"), [(0.2, LONG), (5, SHORT)], ids=["timeout", "deadline"])
async def test_full_pool_means_not_sent(patience: float, deadline: timedelta) -> None:
    async with serving(hang) as server, client(server.url, httpx.Timeout(5, pool=patience), max_connections=1) as http:
        first = asyncio.create_task(SunoApi(http, KEY, LONG).submit(REQUEST))
        await server.until(1)
        second = await SunoApi(http, KEY, deadline).submit(REQUEST)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert second.outcome is Outcome.not_sent
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["a\nb", "a\r", "a\x00", "a "])
async def test_key_that_cannot_stand_in_a_header_holds(key: str) -> None:
    async with serving(answering(200, CREATED)) as server, client(server.url) as http:
        upstream = SunoApi(http, key, LONG)
        answers = [await upstream.submit(REQUEST), await upstream.credits(), await upstream.record_info("a")]
    held = (Outcome.held, HoldReason.unsendable, "nothing was sent (LocalProtocolError)")
    assert [(answer.outcome, answer.hold_reason, answer.message) for answer in answers] == [held] * 3
    assert server.requests == []


@pytest.mark.parametrize(
    "behave", [close_at_once, reset_after_reading, reset_mid_answer, talk_nonsense], ids=lambda behave: behave.__name__
)
async def test_answer_lost_after_sending_is_ambiguous(behave: Behaviour) -> None:
    answer = await submit(behave)
    assert (answer.outcome, answer.value) == (Outcome.ambiguous, None)
    assert answer.message is not None
    assert answer.message.startswith("the answer was lost (")


@pytest.mark.parametrize("behave", [hang, drip], ids=lambda behave: behave.__name__)
async def test_answer_without_an_end_is_ambiguous_at_the_deadline(behave: Behaviour) -> None:
    started = time.monotonic()
    answer = await submit(behave, SHORT)
    assert answer == Result(Outcome.ambiguous, message="the answer was lost (TimeoutError)")
    assert 0.5 <= time.monotonic() - started < 5


async def test_answer_too_large_is_left_unread_and_ambiguous() -> None:
    written = 0

    async def flood(connection: Connection) -> None:
        nonlocal written
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n" + CREATED)
        while written < 10_000_000:
            await connection.send(b" " * 65536)
            written += 65536

    answer = await submit(flood)
    assert answer.outcome is Outcome.ambiguous
    assert written < 10_000_000


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", packed(CREATED)),
        (b"X-GZIP", packed(CREATED)),
        (b"deflate", zlib.compress(CREATED)),
        (b"identity", CREATED),
        (b"utf-8", CREATED),
        (b"", CREATED),
        (b"gzip", CREATED),
    ],
)
async def test_coded_answer_is_read(coding: bytes, body: bytes) -> None:
    answer = await submit(answering(200, body, b"Content-Encoding: " + coding))
    assert (answer.outcome, answer.value) == (Outcome.ok, "abc")


@pytest.mark.parametrize("body", [packed(CREATED + b" " * 50_000_000), packed(CREATED)[:-12], b"\x1f\x8b.."])
async def test_coded_answer_that_cannot_be_read_is_ambiguous(body: bytes) -> None:
    answer = await submit(answering(200, body, b"Content-Encoding: gzip"))
    assert answer == Result(Outcome.ambiguous, code=200, message="HTTP 200 without an envelope")


async def test_status_of_a_coded_answer_that_cannot_be_read_counts() -> None:
    answer = await submit(answering(401, b"\x1f\x8b..", b"Content-Encoding: gzip"))
    assert (answer.outcome, answer.hold_reason) == (Outcome.held, HoldReason.bad_key)


async def test_block_page_holds() -> None:
    answer = await submit(answering(403, b"<html>error code: 1010</html>"))
    assert (answer.outcome, answer.hold_reason) == (Outcome.held, HoldReason.blocked)


async def test_redirect_is_not_followed() -> None:
    async with serving(answering(307, b"", b"Location: /elsewhere")) as server:
        answer = await submit_to(server.url)
    assert (answer.outcome, len(server.requests)) == (Outcome.held, 1)


async def test_retry_after_header_is_read() -> None:
    answer = await submit(answering(429, b"", b"Retry-After: 7"))
    assert (answer.outcome, answer.retry_after) == (Outcome.throttled, timedelta(seconds=7))


async def test_cancellation_passes_through() -> None:
    async with serving(hang) as server, client(server.url) as http:
        submitting = asyncio.create_task(SunoApi(http, KEY, LONG).submit(REQUEST))
        await server.until(1)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting


@pytest.mark.parametrize("behave", [close_at_once, reset_after_reading, talk_nonsense, hang])
async def test_fault_names_neither_key_nor_callback(behave: Behaviour, caplog: pytest.LogCaptureFixture) -> None:
    for library in ("httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, library)
    written = repr(await submit(behave, SHORT)) + caplog.text
    assert "POST" in written
    assert KEY not in written
    assert TOKEN not in written


@pytest.mark.parametrize("code", [400, 401, 405, 500])
async def test_secrets_that_the_upstream_repeats_are_redacted(code: int) -> None:
    said = f"refused for {KEY}, called at {CALLBACK_URL} with {TOKEN}"
    body = json.dumps({"code": code, "msg": said, "data": {"taskId": "a", "errorMessage": said}}).encode()
    async with serving(answering(200, body)) as server, client(server.url) as http:
        upstream = SunoApi(http, KEY, LONG)
        submitted, read = await upstream.submit(REQUEST), await upstream.credits()
        polled, words = await upstream.record_info("a"), await upstream.lyrics("a", "b")
    results = repr((submitted, polled, read, words))
    assert "refused for ***" in results
    assert KEY not in results
    assert TOKEN not in repr(submitted)


async def test_poll_requests_one_task_and_reads_its_report() -> None:
    found = b'{"code":200,"data":{"taskId":"a-b","status":"SUCCESS","response":{"sunoData":[{"audioUrl":"https://c.example/a"}]}}}'
    async with serving(answering(200, found)) as server, client(server.url) as http:
        answer = await SunoApi(http, KEY, LONG).record_info("a-b")
    assert server.requests[0].head.startswith("GET /api/v1/generate/record-info?taskId=a-b HTTP/1.1\r\n")
    assert answer.value is not None
    assert (answer.outcome, answer.value.stage) == (Outcome.ok, Stage.succeeded)


async def test_unknown_status_word_is_logged_once_and_counted() -> None:
    found = b'{"code":200,"data":{"taskId":"a-b","status":"BREWING"}}'
    metrics = Metrics()
    with capture_logs() as lines:
        async with serving(answering(200, found)) as server, client(server.url) as http:
            upstream = SunoApi(http, KEY, LONG, metrics=metrics)
            for _ in range(2):
                await upstream.record_info("a-b")
            for number in range(100):
                upstream.note_unknown(upstream.read_callback(b'{"code":200,"data":{"callbackType":"new%d"}}' % number))

    def counted(word: str) -> float | None:
        return metrics.registry.get_sample_value("soundpost_unknown_status_words_total", {"word": word})

    assert [line["word"] for line in lines].count("BREWING") == 1
    assert (counted("BREWING"), counted("new0"), counted("other")) == (2, 1, 51)


async def test_credits_are_requested_and_read() -> None:
    async with serving(answering(200, b'{"code":200,"data":1025.6}')) as server, client(server.url) as http:
        answer = await SunoApi(http, KEY, LONG).credits()
    assert server.requests[0].head.startswith("GET /api/v1/generate/credit HTTP/1.1\r\n")
    assert answer.value == Decimal("1025.6")


async def test_lyrics_are_requested_by_task_and_clip() -> None:
    found = b'{"code":200,"data":{"alignedWords":[{"word":"rain","success":true,"startS":0.5,"endS":1}]}}'
    async with serving(answering(200, found)) as server, client(server.url) as http:
        answer = await SunoApi(http, KEY, LONG).lyrics("abc", "8551")
    head, body = server.requests[0].head, server.requests[0].body
    assert head.startswith("POST /api/v1/generate/get-timestamped-lyrics HTTP/1.1\r\n")
    assert json.loads(body) == {"taskId": "abc", "audioId": "8551"}
    assert answer.value == (LyricWord("rain", 0.5, 1.0),)


@pytest.mark.parametrize(
    "behave", [close_at_once, reset_mid_answer, hang, answering(200, b"<html>"), answering(502, b"")]
)
async def test_reads_that_fail_may_be_asked_again(behave: Behaviour) -> None:
    async with serving(behave) as server, client(server.url) as http:
        upstream = SunoApi(http, KEY, SHORT)
        poll, credit, lyrics = await asyncio.gather(
            upstream.record_info("abc"), upstream.credits(), upstream.lyrics("abc", "8551")
        )
    assert (poll.outcome, poll.value) == (Outcome.failed, None)
    assert (credit.outcome, credit.value) == (Outcome.failed, None)
    assert (lyrics.outcome, lyrics.value) == (Outcome.failed, None)


async def test_replaced_key_is_sent_and_both_are_redacted() -> None:
    body = f'{{"code": 500, "msg": "the {KEY} and the another-upstream-key"}}'.encode()
    async with serving(answering(200, body)) as server, client(server.url) as http:
        upstream = SunoApi(http, KEY, LONG)
        await upstream.credits()
        upstream.use_keys("another-upstream-key", None)
        answer = await upstream.credits()
        sent = [request.headers["authorization"] for request in server.requests]

    assert sent == [f"Bearer {KEY}", "Bearer another-upstream-key"]
    assert answer.message == "the *** and the ***"
    assert "another-upstream-key" not in repr(http.headers)
