"""The upstream's envelope and its codes: what each answer means for the one who asked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from app.upstream.redaction import redact
from app.upstream.suno.parsing import fields, header, read_id, read_integer, read_json, read_text, unpacked
from app.upstream.types import HoldReason, Verdict

MESSAGE_LENGTH = 500
MAX_WAIT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What an answer means, and why to stop asking when it means that."""

    verdict: Verdict
    hold_reason: HoldReason | None = None


CREATED = Ruling(Verdict.created)
REJECTED = Ruling(Verdict.rejected)
THROTTLED = Ruling(Verdict.throttled)
AMBIGUOUS = Ruling(Verdict.ambiguous)
NO_CREDITS = Ruling(Verdict.held, HoldReason.no_credits)
BAD_KEY = Ruling(Verdict.held, HoldReason.bad_key)
BLOCKED = Ruling(Verdict.held, HoldReason.blocked)

# Codes that are in neither table are ambiguous: such a task may have been created and charged.
BY_BODY_CODE: Mapping[int, Ruling] = {
    200: CREATED,
    400: REJECTED,
    401: BAD_KEY,
    402: NO_CREDITS,
    403: BLOCKED,
    404: REJECTED,
    405: THROTTLED,  # Their rate limit.
    409: REJECTED,
    413: REJECTED,
    422: REJECTED,
    429: NO_CREDITS,  # Not their rate limit.
    430: THROTTLED,
    433: THROTTLED,
    455: THROTTLED,
    503: THROTTLED,
    505: REJECTED,
}
# Without an envelope a redirect or refusal comes from something in front of the upstream.
BY_HTTP_STATUS: Mapping[int, Ruling] = dict.fromkeys(range(300, 500), BLOCKED) | {
    200: CREATED,
    401: BAD_KEY,
    402: NO_CREDITS,
    405: THROTTLED,
    429: THROTTLED,
    430: THROTTLED,
    433: THROTTLED,
    455: THROTTLED,
    503: THROTTLED,
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """The outer layer of every body: `code` is None where there is no envelope around it."""

    code: int | None
    message: str | None
    fields: Mapping[str, object]

    @property
    def data(self) -> object:
        """What the envelope holds."""
        return unpacked(self.fields.get("data"))

    @property
    def task_id(self) -> str | None:
        """The upstream's id of the task that this speaks of, from wherever it stands."""
        data = fields(self.data)
        places = (data, fields(unpacked(data.get("response"))), self.fields)
        return next(filter(None, (read_id(place.get("taskid")) for place in places)), None)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to one of our requests, weighed."""

    envelope: Envelope
    ruling: Ruling
    code: int
    message: str | None
    retry_after: timedelta | None


def read_envelope(body: bytes) -> Envelope:
    """Open a body. What is no JSON object is an envelope with nothing in it."""
    named = fields(read_json(body))
    message = read_text(named.get("msg") or named.get("message"), MESSAGE_LENGTH)
    return Envelope(read_integer(named.get("code")), message and redact(message), named)


def read_reply(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Reply:
    """Weigh an answer by the code in its body, since errors hide in HTTP 200, else by its status."""
    envelope = read_envelope(body)
    retry_after = read_retry_after(headers, now)
    if envelope.code is None:
        ruling = BY_HTTP_STATUS.get(status, AMBIGUOUS)
        message = envelope.message or f"HTTP {status} without an envelope"
        return Reply(envelope, ruling, status, message, retry_after)
    ruling = BY_BODY_CODE.get(envelope.code, AMBIGUOUS)
    return Reply(envelope, ruling, envelope.code, envelope.message, retry_after)


def read_retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """Return how long we are asked to wait, at most an hour, however it is written."""
    value = header(headers, "retry-after")
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value.strip()):
        return min(timedelta(seconds=float(value.strip())), MAX_WAIT)
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is in UTC, as all dates in HTTP are.
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta()), MAX_WAIT)
