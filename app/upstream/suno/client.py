"""The Suno API: its paths and its wire format, where every fault of the network is a result too."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Never, TypeVar

import httpx
import structlog

from app.egress import ResponseGarbled, decoded_chunks
from app.observability.metrics import Metrics
from app.observability.redaction import redact
from app.upstream.suno import reports, signature
from app.upstream.suno.envelope import KNOWN_CODES
from app.upstream.types import HoldReason, LyricWord, Outcome, Report, Result, SoundRequest

SUBMIT_PATH = "/api/v1/generate/sounds"
RECORD_INFO_PATH = "/api/v1/generate/record-info"
CREDIT_PATH = "/api/v1/generate/credit"
LYRICS_PATH = "/api/v1/generate/get-timestamped-lyrics"
MAX_BODY_BYTES = 1024 * 1024
# Raised before the first byte they are no fault of the network: a URL or a header that no request can carry.
UNSENDABLE = (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError, TypeError)

log = structlog.get_logger()

Value = TypeVar("Value")
Reader = Callable[[int, Mapping[str, str], bytes, datetime], Result[Value]]


@dataclass(frozen=True, slots=True)
class Response:
    """What came over the wire, with gzip and deflate undone."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class NoResponse:
    """
    An exchange that broke.

    `was_sent`: bytes of the request may have reached the upstream. `is_hopeless`: none has, and none ever will.
    """

    was_sent: bool
    message: str
    is_hopeless: bool = False


class SunoApi:
    """
    An `Upstream` over a client of the upstream's address.

    Each exchange ends within `timeout`, from the name lookup to the last byte; only
    cancellation ends it sooner. `callback_key` verifies the signatures of callbacks.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        api_key: str,
        timeout: timedelta,
        callback_key: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._http, self._timeout = http, timeout
        self._metrics = metrics or Metrics()
        self.secrets: tuple[str, ...] = ()
        self.use_keys(api_key, callback_key)

    @property
    def needs_signature(self) -> bool:
        """Whether callbacks must be signed."""
        return self._callback_key is not None

    def use_keys(self, api_key: str, callback_key: str | None) -> None:
        """Call with this key and verify callbacks with that one from now on; the former key is still redacted."""
        self.secrets = tuple(dict.fromkeys((api_key, *self.secrets)))[:2]
        self._callback_key = callback_key
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    async def submit(self, request: SoundRequest) -> Result[str]:
        """Request a sound. The outcome says whether one may have been created."""
        response = await self._exchange("POST", SUBMIT_PATH, body=_wire_format(request))
        if isinstance(response, NoResponse):
            return _unsubmitted(response)
        result = self._read(reports.read_submit, response)
        return replace(result, message=self._redacted(result.message, request.callback_url.rpartition("/")[2]))

    async def record_info(self, upstream_task_id: str) -> Result[Report]:
        """Poll a task."""
        response = await self._exchange("GET", RECORD_INFO_PATH, query={"taskId": upstream_task_id})
        if isinstance(response, NoResponse):
            return _failed(response)
        result = self._read(reports.read_record_info, response)
        self.note_unknown(result.value)
        report = result.value and replace(result.value, message=self._redacted(result.value.message))
        return replace(result, value=report, message=self._redacted(result.message))

    async def credits(self) -> Result[Decimal]:
        """How many credits are left."""
        response = await self._exchange("GET", CREDIT_PATH)
        if isinstance(response, NoResponse):
            return _failed(response)
        result = self._read(reports.read_credits, response)
        return replace(result, message=self._redacted(result.message))

    async def lyrics(self, upstream_task_id: str, upstream_clip_id: str) -> Result[tuple[LyricWord, ...]]:
        """The words of a finished clip. Despite the POST this creates nothing, so it may be repeated."""
        body = {"taskId": upstream_task_id, "audioId": upstream_clip_id}
        response = await self._exchange("POST", LYRICS_PATH, body=body)
        if isinstance(response, NoResponse):
            return _failed(response)
        result = self._read(reports.read_lyrics, response)
        return replace(result, message=self._redacted(result.message))

    def read_callback(self, body: bytes) -> Report | None:
        """What a callback reports, or None when it reports nothing that we can read."""
        return reports.read_callback(body)

    def is_signed(self, headers: Mapping[str, str], report: Report | None, now: datetime) -> bool:
        """Whether a callback has a signature of ours within its time; never without a key to verify it."""
        if self._callback_key is None or report is None:
            return False
        return signature.callback_signature_matches(headers, report.upstream_task_id, self._callback_key, now)

    def note_unknown(self, report: Report | None) -> None:
        """Count a code and a status word that are in no list of ours, and log the word the first time."""
        if report is not None:
            self._note_code(report.code)
        if report is None or report.unknown_word is None:
            return
        word = self._redacted(report.unknown_word) or ""
        if self._metrics.unknown_words.count(word):
            log.warning("unknown_status_word", word=word, read_as=report.stage.value)

    def _read(self, reader: Reader[Value], response: Response) -> Result[Value]:
        result = reader(response.status, response.headers, response.body, datetime.now(UTC))
        self._note_code(result.code)
        return result

    def _note_code(self, code: int | None) -> None:
        if code is not None and code not in KNOWN_CODES:
            self._metrics.unknown_codes.count(str(code))

    def _redacted(self, message: str | None, *secrets: str) -> str | None:
        """The upstream's message without the secrets of ours that it may repeat."""
        return message and redact(message, *self.secrets, *secrets)

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Response | NoResponse:
        sending = _Sending()
        try:
            async with (
                asyncio.timeout(self._timeout.total_seconds()),
                self._http.stream(
                    method, path, params=query, json=body, extensions={"trace": sending.watch}
                ) as response,
            ):
                return Response(response.status_code, response.headers, await _read_body(response))
        # Any exception, known or not: all that matters is whether the first byte had been sent.
        except Exception as error:
            return _no_response(error, sending.has_begun)


class _Sending:
    """Records the moment from which bytes of a request may have left."""

    def __init__(self) -> None:
        self.has_begun = False

    async def watch(self, event: str, _info: Mapping[str, object]) -> None:
        self.has_begun = self.has_begun or event.endswith(".send_request_headers.started")


def _unsubmitted(response: NoResponse) -> Result[Never]:
    if response.is_hopeless:
        return _failed(response)
    return Result(Outcome.ambiguous if response.was_sent else Outcome.not_sent, message=response.message)


def _failed(response: NoResponse) -> Result[Never]:
    if response.is_hopeless:
        # Tried again it would fail for ever, and nobody would know.
        return Result(Outcome.held, message=response.message, hold_reason=HoldReason.unsendable)
    return Result(Outcome.failed, message=response.message)


async def _read_body(response: httpx.Response) -> bytes:
    """Return the body, or nothing if it is larger than any response of theirs, or its content coding is broken."""
    body = bytearray()
    with suppress(ResponseGarbled):
        async for chunk in decoded_chunks(response):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return b""
        return bytes(body)
    return b""


def _no_response(error: Exception, has_begun: bool) -> NoResponse:
    # A request that breaks the rules of HTTP, for example by a line break in the key, is stopped before its first byte.
    is_hopeless = isinstance(error, httpx.LocalProtocolError) or (not has_begun and isinstance(error, UNSENDABLE))
    was_sent = has_begun and not is_hopeless
    # The text of the error may hold the URL, and with it a token.
    case = "the answer was lost" if was_sent else "nothing was sent"
    return NoResponse(was_sent, f"{case} ({type(error).__name__})", is_hopeless)


def _wire_format(request: SoundRequest) -> dict[str, object]:
    body: dict[str, object] = {
        "prompt": request.prompt,
        "model": request.model,
        "soundLoop": request.sound_loop,
        "soundKey": request.sound_key,
        "grabLyrics": request.grab_lyrics,
        "callBackUrl": request.callback_url,
    }
    # The documented way to let the upstream choose the tempo is to leave it out.
    return body if request.sound_tempo is None else body | {"soundTempo": request.sound_tempo}
