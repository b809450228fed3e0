"""The envelope around everything that Suno sends, and what its codes mean for the call that they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Never

from app.observability.redaction import redact
from app.upstream.suno.parsing import fields, read_id, read_integer, read_json, read_text, unpacked
from app.upstream.types import HoldReason, Outcome, Result
from app.web.negotiation import retry_after

MAX_MESSAGE_LENGTH = 500
MAX_RETRY_AFTER = timedelta(hours=1)

OK: Result[Never] = Result(Outcome.ok)
INVALID: Result[Never] = Result(Outcome.invalid)
REJECTED: Result[Never] = Result(Outcome.rejected)
THROTTLED: Result[Never] = Result(Outcome.throttled)
AMBIGUOUS: Result[Never] = Result(Outcome.ambiguous)
NO_CREDITS: Result[Never] = Result(Outcome.held, hold_reason=HoldReason.no_credits)
BAD_KEY: Result[Never] = Result(Outcome.held, hold_reason=HoldReason.bad_key)
BLOCKED: Result[Never] = Result(Outcome.held, hold_reason=HoldReason.blocked)

# A code in neither table is ambiguous: such a task may have been created and charged.
RESULTS_BY_BODY_CODE: Mapping[int, Result[Never]] = {
    200: OK,
    400: INVALID,
    401: BAD_KEY,
    402: NO_CREDITS,
    403: BLOCKED,
    404: REJECTED,
    405: THROTTLED,  # Their rate limit.
    409: REJECTED,
    413: INVALID,
    422: INVALID,
    429: NO_CREDITS,  # Not their rate limit.
    430: THROTTLED,
    433: THROTTLED,
    455: THROTTLED,
    503: THROTTLED,
    505: REJECTED,
}
# Those, what a failed task has, and what a proxy in front of the upstream answers.
KNOWN_CODES = RESULTS_BY_BODY_CODE.keys() | {408, 451, 500, 501, 502, 504, 531}
# Without an envelope, a redirect or a refusal comes from something in front of the upstream.
RESULTS_BY_HTTP_STATUS: Mapping[int, Result[Never]] = dict.fromkeys(range(300, 500), BLOCKED) | {
    200: OK,
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
    """
    The outer object of a body. `code` is None where the body has no envelope.

    `data` is the content of the envelope, `inner` the fields of that.
    """

    code: int | None
    message: str | None
    fields: Mapping[str, object]
    data: object
    inner: Mapping[str, object]

    @property
    def task_id(self) -> str | None:
        """The upstream's id of the task, from any of the places where it is sent."""
        found = read_id(self.inner.get("taskid"))
        if found is None:
            found = read_id(fields(unpacked(self.inner.get("response"))).get("taskid"))
        return read_id(self.fields.get("taskid")) if found is None else found


def read_envelope(body: bytes) -> Envelope:
    """Open a body. A body that is not a JSON object, or a list of one, gives an empty envelope."""
    value = read_json(body)
    named = fields(value[0] if isinstance(value, list) and len(value) == 1 else value)
    message = read_text(named.get("msg") or named.get("message"), MAX_MESSAGE_LENGTH)
    data = unpacked(named.get("data"))
    return Envelope(read_integer(named.get("code")), message and redact(message), named, data, fields(data))


def read_response(
    status: int, headers: Mapping[str, str], body: bytes, now: datetime
) -> tuple[Envelope, Result[Never]]:
    """
    Return the envelope of a response, and the result without its value.

    Errors hide in HTTP 200: the code in the body decides, and the status only where there is none.
    """
    envelope = read_envelope(body)
    wait = retry_after(headers, now, MAX_RETRY_AFTER)
    if envelope.code is None:
        result = RESULTS_BY_HTTP_STATUS.get(status, AMBIGUOUS)
        message = envelope.message or f"HTTP {status} without an envelope"
        return envelope, replace(result, code=status, message=message, retry_after=wait)
    result = RESULTS_BY_BODY_CODE.get(envelope.code, AMBIGUOUS)
    return envelope, replace(result, code=envelope.code, message=envelope.message, retry_after=wait)
