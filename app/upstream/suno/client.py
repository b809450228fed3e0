"""Asking the upstream: submits, polls, credits and lyrics, where every fault of the network is an answer too."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx

from app.upstream.redaction import redact
from app.upstream.suno.answers import read_credits, read_lyrics, read_submit
from app.upstream.suno.reports import read_record_info
from app.upstream.types import (
    CreditsAnswer,
    LyricsAnswer,
    PollAnswer,
    PollVerdict,
    ReadVerdict,
    SoundOrder,
    SubmitAnswer,
    Verdict,
)

SUBMIT = "/api/v1/generate/sounds"
RECORD_INFO = "/api/v1/generate/record-info"
CREDIT = "/api/v1/generate/credit"
LYRICS = "/api/v1/generate/get-timestamped-lyrics"
MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back over the wire, its body never decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """An exchange that broke. `sent`: bytes of the request may have reached the upstream."""

    sent: bool
    message: str


class Upstream:
    """
    The Suno API, over a client that knows its address and our key.

    No method raises for what the network or the upstream does. Each exchange ends
    within the deadline, from look-up to last byte; only cancellation cuts it shorter.
    """

    def __init__(self, http: httpx.AsyncClient, deadline: timedelta) -> None:
        self._http = http
        self._deadline = deadline
        self._key = http.headers.get("Authorization", "").removeprefix("Bearer ")

    async def submit(self, order: SoundOrder, callback_url: str) -> SubmitAnswer:
        """Order a sound. Only a verdict of `rejected`, `throttled`, `held` or `not_sent` proves that none was made."""
        answer = await self._exchange("POST", SUBMIT, body=_wire_order(order, callback_url))
        if isinstance(answer, Fault):
            return SubmitAnswer(Verdict.ambiguous if answer.sent else Verdict.not_sent, message=answer.message)
        told = read_submit(answer.status, answer.headers, answer.body, datetime.now(UTC))
        return replace(told, message=self._presentable(told.message, callback_url.rpartition("/")[2]))

    async def record_info(self, upstream_task_id: str) -> PollAnswer:
        """Ask how far a task is."""
        answer = await self._exchange("GET", RECORD_INFO, query={"taskId": upstream_task_id})
        if isinstance(answer, Fault):
            return PollAnswer(PollVerdict.failed, message=answer.message)
        told = read_record_info(answer.status, answer.headers, answer.body, datetime.now(UTC))
        report = told.report and replace(told.report, message=self._presentable(told.report.message))
        return replace(told, message=self._presentable(told.message), report=report)

    async def credits(self) -> CreditsAnswer:
        """Ask how many credits are left."""
        answer = await self._exchange("GET", CREDIT)
        if isinstance(answer, Fault):
            return CreditsAnswer(ReadVerdict.failed, message=answer.message)
        told = read_credits(answer.status, answer.headers, answer.body, datetime.now(UTC))
        return replace(told, message=self._presentable(told.message))

    async def lyrics(self, upstream_task_id: str, upstream_clip_id: str) -> LyricsAnswer:
        """Ask for the words of a finished clip. This makes nothing, so it may be asked again."""
        body = {"taskId": upstream_task_id, "audioId": upstream_clip_id}
        answer = await self._exchange("POST", LYRICS, body=body)
        if isinstance(answer, Fault):
            return LyricsAnswer(ReadVerdict.failed, message=answer.message)
        told = read_lyrics(answer.status, answer.headers, answer.body, datetime.now(UTC))
        return replace(told, message=self._presentable(told.message))

    def _presentable(self, message: str | None, *secrets: str) -> str | None:
        """What the upstream said, without what it may have repeated of ours."""
        return message and redact(message, self._key, *secrets)

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Answered | Fault:
        sending = _Sending()
        try:
            async with (
                asyncio.timeout(self._deadline.total_seconds()),
                self._http.stream(
                    method, path, params=query, json=body, extensions={"trace": sending.watch}
                ) as response,
            ):
                return Answered(response.status_code, response.headers, await _read_body(response))
        # Whatever broke, known or not: what counts is whether it broke before anything was sent.
        except Exception as error:
            return _fault(error, sending.has_begun)


class _Sending:
    """Sees the moment at which the first byte of a request may leave."""

    def __init__(self) -> None:
        self.has_begun = False

    async def watch(self, event: str, _info: Mapping[str, object]) -> None:
        self.has_begun = self.has_begun or event.endswith(".send_request_headers.started")


async def _read_body(response: httpx.Response) -> bytes:
    """Return the body as it came, or nothing if it is too large to be an answer of theirs."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return b""
    return bytes(body)


def _fault(error: Exception, begun: bool) -> Fault:
    # A request that breaks the rules of HTTP, say by a line break in the key, is stopped before its first byte.
    sent = begun and not isinstance(error, httpx.LocalProtocolError)
    # The error's own text may hold the URL, and so a token.
    case = "the answer was lost" if sent else "nothing was sent"
    return Fault(sent, f"{case} ({type(error).__name__})")


def _wire_order(order: SoundOrder, callback_url: str) -> dict[str, object]:
    wire: dict[str, object] = {
        "prompt": order.prompt,
        "model": order.model,
        "soundLoop": order.sound_loop,
        "soundKey": order.sound_key,
        "grabLyrics": order.grab_lyrics,
        "callBackUrl": callback_url,
    }
    # Leaving the tempo out is the documented way to let the upstream choose it.
    return wire if order.sound_tempo is None else wire | {"soundTempo": order.sound_tempo}
