"""Reading what Suno sends, as responses and callbacks, into results and reports."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Never

from app.enums import ErrorCode
from app.observability.redaction import redact
from app.upstream.suno.envelope import MAX_MESSAGE_LENGTH, Envelope, read_envelope, read_response
from app.upstream.suno.parsing import fields, read_id, read_integer, read_number, read_text, read_url, unpacked
from app.upstream.types import HoldReason, LyricWord, Outcome, Report, ReportedClip, Result, Stage

MAX_TEXT_LENGTH = 1000
MAX_NAME_LENGTH = 100
MAX_WORD_LENGTH = 500
MAX_CLIPS = 50
MAX_CLIP_SECONDS = 86_400
MAX_CREDITS = 1e12
MAX_LYRIC_WORDS = 10_000
CLIP_LIST_FIELDS = ("sunodata", "response", "data")
# In which a clip says why it failed, and what says there that it did not.
FAILURE_FIELDS = frozenset(
    {
        *("error", "errormessage", "errorcode", "errortype", "errorreason", "haserror"),
        *("failed", "isfailed", "failreason", "failurereason", "failcode", "failmessage"),
    }
)
NO_FAILURE = frozenset({"", "none", "null", "false", "0", "200", "ok", "success", "no error"})
AUDIO_FIELDS = frozenset({"audiourl", "sourceaudiourl", "streamaudiourl"})

# By callback type and by poll status alike.
STAGES_BY_NAME: Mapping[str, Stage] = {
    **dict.fromkeys(("text", "first", "second", "pending", "generating", "processing"), Stage.running),
    "text_success": Stage.running,
    "first_success": Stage.running,
    "complete": Stage.succeeded,
    "success": Stage.succeeded,
    "callback_exception": Stage.unclear,  # Their callback failed, which says nothing about the sound.
    "error": Stage.failed,
    "failed": Stage.failed,
    "create_task_failed": Stage.failed,
    "generate_audio_failed": Stage.failed,
    "sensitive_word_error": Stage.failed,
}
# Other names are read by their kind; what is of none means that the task is still running.
STAGES_BY_KIND: Sequence[tuple[re.Pattern[str], Stage]] = (
    (re.compile(r".*callback.*"), Stage.unclear),
    (re.compile(r"(.*[\W_])?(fail|error|time[\W_]?d?[\W_]?out|unsuccess).*"), Stage.failed),
    (re.compile(r"(complete|success|succeed).*"), Stage.succeeded),
)
# By their code or their name for the failure; any other is `upstream_failed`.
ERROR_CODES_BY_SIGN: Mapping[str, ErrorCode] = {
    "400": ErrorCode.content_rejected,
    "413": ErrorCode.content_rejected,
    "sensitive_word_error": ErrorCode.content_rejected,
    "402": ErrorCode.insufficient_credits,
    "429": ErrorCode.insufficient_credits,
}
REFUNDED_CODE = 531
# HTTP statuses, without an envelope, of what a server does not have.
LEFT_OUT = frozenset({404, 410})
NO_RECORD_CODE = 422  # A reseller of the same API sends this where Suno sends null data.


def read_submit(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Result[str]:
    """Return the new task's upstream id. A success without a readable id is ambiguous: it may be charged."""
    envelope, result = read_response(status, headers, body, now)
    if result.outcome is not Outcome.ok:
        return result
    if envelope.task_id is None:
        return replace(result, outcome=Outcome.ambiguous)
    return Result(Outcome.ok, envelope.task_id, result.code, result.message, result.retry_after)


def read_record_info(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Result[Report]:
    """Return what a poll reports."""
    envelope, result = read_response(status, headers, body, now)
    code, data = envelope.code, envelope.data
    if code == NO_RECORD_CODE or (code == 200 and not data):
        return replace(result, outcome=Outcome.pending)
    if code == 200 and isinstance(data, dict):
        return Result(Outcome.ok, _read_report(envelope), result.code, result.message, result.retry_after)
    return _without_value(result, is_about_one=True)


def read_credits(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Result[Decimal]:
    """Return the credits that are left, with their fraction."""
    envelope, result = read_response(status, headers, body, now)
    amount = _read_amount(envelope.fields.get("data")) if envelope.code == 200 else None
    if amount is None:
        return _without_value(result)
    return Result(Outcome.ok, amount, result.code, result.message, result.retry_after)


def read_lyrics(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Result[tuple[LyricWord, ...]]:
    """Return the words of a clip with their times. None at all is normal for sounds."""
    envelope, result = read_response(status, headers, body, now)
    if envelope.code != 200:
        return _without_value(result, is_about_one=True)
    words = _read_words(envelope.inner.get("alignedwords"))
    return Result(Outcome.ok, words, result.code, result.message, result.retry_after)


def read_callback(body: bytes) -> Report | None:
    """Return what a callback reports, or None when it reports nothing that we can read."""
    envelope = read_envelope(body)
    report = _read_report(envelope)
    is_readable = envelope.code is not None or report.clips or _flattened(envelope).keys() & {"callbacktype", "status"}
    return report if is_readable else None


def _without_value(result: Result[Never], *, is_about_one: bool = False) -> Result[Never]:
    """A read that brought nothing. It creates nothing either, so refusals and lost responses are alike."""
    # A firewall may dislike the words of one task, which is read again and again; and mirrors leave routes out. Neither
    # says anything about submits.
    is_harmless = result.hold_reason is HoldReason.blocked and (is_about_one or result.code in LEFT_OUT)
    has_effect = result.outcome in (Outcome.throttled, Outcome.held) and not is_harmless
    return result if has_effect else replace(result, outcome=Outcome.failed, hold_reason=None)


def _read_report(envelope: Envelope) -> Report:
    named = _flattened(envelope)
    name = _read_stage_name(named)
    clips = tuple(_read_clip(item) for item in _find_clips_in(envelope.fields))
    code = read_integer(named.get("errorcode")) or (None if envelope.code == 200 else envelope.code)
    message = _read_message(named.get("errormessage"), envelope.message, name)
    stage = Stage.failed if envelope.code not in (None, 200) else _stage(name, clips)
    failed = stage is Stage.failed
    return Report(
        stage=stage,
        upstream_task_id=envelope.task_id,
        clips=clips,
        code=code,
        message=message,
        error_code=_error_code(named, name, code) if failed else None,
        refunded=failed and code == REFUNDED_CODE,
        unknown_word=name if name and name.lower() not in STAGES_BY_NAME else None,
    )


def _flattened(envelope: Envelope) -> dict[str, object]:
    """The fields of the envelope, overridden by those of its data."""
    return {**envelope.fields, **{name: value for name, value in envelope.inner.items() if value not in (None, "")}}


def _read_stage_name(named: Mapping[str, object]) -> str | None:
    names = (read_text(named.get(field), MAX_NAME_LENGTH) for field in ("callbacktype", "status"))
    return next(filter(None, names), None)


def _stage(name: str | None, clips: Sequence[ReportedClip]) -> Stage:
    stage = _stage_named(name)
    ready = [clip.has_audio for clip in clips]
    if stage is Stage.succeeded and not any(ready):
        return Stage.unclear
    if stage is Stage.unclear and ready and all(ready):
        return Stage.succeeded
    return stage


def _stage_named(name: str | None) -> Stage:
    word = (name or "").lower()
    if word in STAGES_BY_NAME:
        return STAGES_BY_NAME[word]
    return next((stage for pattern, stage in STAGES_BY_KIND if pattern.fullmatch(word)), Stage.running)


def _read_message(error: object, message: str | None, name: str | None) -> str | None:
    """Return the text that explains most. The envelope of a poll says "success" about failures too."""
    text = read_text(error, MAX_MESSAGE_LENGTH)
    texts = (text and redact(text), message, name)
    return next((line for line in texts if line and line.lower() != "success"), None)


def _error_code(named: Mapping[str, object], name: str | None, code: int | None) -> ErrorCode:
    signs = (name, read_text(named.get("errorcode"), MAX_NAME_LENGTH), str(code))
    found = (ERROR_CODES_BY_SIGN.get(sign.lower()) for sign in signs if sign)
    return next(filter(None, found), ErrorCode.upstream_failed)


def _find_clips(value: object, depth: int) -> Sequence[Mapping[str, object]]:
    """Return the list of clips, which is nested deeper in a poll than in a callback, and may be text or an object."""
    value = unpacked(value)
    if isinstance(value, list):
        return [_bare(item) for item in map(unpacked, value[:MAX_CLIPS]) if isinstance(item, dict)]
    return _find_clips_in(fields(value), depth)


def _find_clips_in(named: Mapping[str, object], depth: int = 4) -> Sequence[Mapping[str, object]]:
    """The same for the fields of an object."""
    inner = next((named[field] for field in CLIP_LIST_FIELDS if named.get(field)), None)
    found = _find_clips(inner, depth - 1) if inner is not None and depth else []
    if found or not depth:
        return found
    if named.keys() & AUDIO_FIELDS:
        return [named]
    numbered = [item for name, item in named.items() if name.isdigit() and isinstance(item, dict)][:MAX_CLIPS]
    return numbered or _find_clips_elsewhere(named, depth - 1)


def _bare(item: Mapping[str, object]) -> Mapping[str, object]:
    """The clip itself, where an item of the list only wraps it."""
    inner = [value for value in item.values() if isinstance(value, dict) and fields(value).keys() & AUDIO_FIELDS]
    return inner[0] if len(inner) == 1 and not fields(item).keys() & AUDIO_FIELDS else item


def _find_clips_elsewhere(named: Mapping[str, object], depth: int) -> Sequence[Mapping[str, object]]:
    """Return the first list under another name whose items have audio. `param` only repeats our request."""
    for name, item in named.items():
        if name != "param" and (isinstance(item, list | dict) or (isinstance(item, str) and item[:1] in ("[", "{"))):
            found = [clip for clip in _find_clips(item, depth) if fields(clip).keys() & AUDIO_FIELDS]
            if found:
                return found
    return []


def _read_clip(item: object) -> ReportedClip:
    named = fields(item)
    is_ready = not _has_failed(named)
    return ReportedClip(
        upstream_clip_id=read_id(named.get("id")),
        title=read_text(named.get("title"), MAX_TEXT_LENGTH),
        tags=read_text(named.get("tags"), MAX_TEXT_LENGTH),
        duration=_read_duration(named.get("duration")),
        model_name=read_text(named.get("modelname"), MAX_NAME_LENGTH),
        image_url=read_url(named.get("imageurl")),
        audio_url=read_url(named.get("audiourl")) if is_ready else None,
        source_audio_url=read_url(named.get("sourceaudiourl")) if is_ready else None,
    )


def _has_failed(clip: Mapping[str, object]) -> bool:
    """Whether a clip says of itself that it failed, whatever its link looks like."""
    words = (read_text(clip.get(field), MAX_NAME_LENGTH) for field in ("status", "state"))
    stages = [_stage_named(word) for word in words if word]
    says_why = any(_word(clip[field]) not in NO_FAILURE for field in FAILURE_FIELDS & clip.keys())
    is_denied = "success" in clip and _word(clip["success"]) in ("false", "0")
    return Stage.failed in stages or is_denied or (says_why and Stage.succeeded not in stages)


def _word(value: object) -> str:
    # Of a list or an object it counts alone whether it is empty.
    return str(bool(value) if isinstance(value, list | dict) else value).strip().lower()


def _read_duration(value: object) -> float | None:
    seconds = read_number(value)
    return seconds if seconds is not None and 0 < seconds <= MAX_CLIP_SECONDS else None


def _read_amount(value: object) -> Decimal | None:
    number = read_number(value)
    return None if number is None or abs(number) > MAX_CREDITS else Decimal(str(number))


def _read_words(value: object) -> tuple[LyricWord, ...]:
    items = value if isinstance(value, list) else []
    words = (_read_word(item) for item in items[:MAX_LYRIC_WORDS])
    return tuple(word for word in words if word is not None)


def _read_word(item: object) -> LyricWord | None:
    named = fields(item)
    word = read_text(named.get("word"), MAX_WORD_LENGTH)
    start, end = read_number(named.get("starts")), read_number(named.get("ends"))
    if word is None or start is None or end is None or not 0 <= start <= end:
        return None
    return LyricWord(word, start, end)
