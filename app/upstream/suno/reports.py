"""Reading what the upstream says about a task, by callback or poll, into one report."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from app.upstream.redaction import redact
from app.upstream.suno.envelope import MESSAGE_LENGTH, Envelope, Reply, read_envelope, read_reply
from app.upstream.suno.parsing import fields, read_id, read_integer, read_number, read_text, read_url, unpacked
from app.upstream.types import PollAnswer, PollVerdict, Report, ReportedClip, Stage, Verdict

TEXT_LENGTH = 1000
WORD_LENGTH = 100
MAX_CLIPS = 50
MAX_CLIP_SECONDS = 86_400
LIST_NAMES = ("sunodata", "response", "data")
CLIP_NAMES = frozenset({"audiourl", "sourceaudiourl", "streamaudiourl"})

# Callback types and poll statuses in one; a word that is not here means that work goes on.
STAGES: Mapping[str, Stage] = {
    "complete": Stage.succeeded,
    "success": Stage.succeeded,
    "callback_exception": Stage.unclear,  # They could not call us, which says nothing about the sound.
    "error": Stage.failed,
    "failed": Stage.failed,
    "create_task_failed": Stage.failed,
    "generate_audio_failed": Stage.failed,
    "sensitive_word_error": Stage.failed,
}
# What they call a failure, by number or by word, in our words.
ERROR_CODES: Mapping[str, str] = {
    "400": "content_rejected",
    "413": "content_rejected",
    "sensitive_word_error": "content_rejected",
    "402": "insufficient_credits",
    "429": "insufficient_credits",
}
REFUNDED_CODE = 531
NO_RECORD = 422  # What a sibling of the upstream says where ours says null.

POLL_VERDICTS: Mapping[Verdict, PollVerdict] = {
    Verdict.throttled: PollVerdict.throttled,
    Verdict.held: PollVerdict.held,
}


def read_callback(body: bytes) -> Report | None:
    """Return what a callback reports, or None when it says nothing that we can read."""
    envelope = read_envelope(body)
    report = _read_report(envelope)
    says_something = envelope.code is not None or report.clips or _said(envelope).keys() & {"callbacktype", "status"}
    return report if says_something else None


def read_record_info(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> PollAnswer:
    """Return what a poll reports. Nothing on record is usual soon after a submit."""
    reply = read_reply(status, headers, body, now)
    kind = _poll_verdict(reply)
    report = _read_report(reply.envelope) if kind is PollVerdict.report else None
    return PollAnswer(kind, report, reply.code, reply.message, reply.retry_after, reply.ruling.hold_reason)


def _poll_verdict(reply: Reply) -> PollVerdict:
    code, data = reply.envelope.code, reply.envelope.data
    if code == NO_RECORD or (code == 200 and not data):
        return PollVerdict.pending
    if code == 200 and isinstance(data, dict):
        return PollVerdict.report
    return POLL_VERDICTS.get(reply.ruling.verdict, PollVerdict.failed)


def _read_report(envelope: Envelope) -> Report:
    said = _said(envelope)
    word = _read_word(said)
    clips = tuple(_read_clip(item) for item in _find_clips(envelope.fields))
    code = read_integer(said.get("errorcode")) or (None if envelope.code == 200 else envelope.code)
    message = _read_message(said.get("errormessage"), envelope.message, word)
    stage = Stage.failed if envelope.code not in (None, 200) else _stage(word, clips)
    failed = stage is Stage.failed
    return Report(
        stage=stage,
        upstream_task_id=envelope.task_id,
        clips=clips,
        code=code,
        message=message,
        error_code=_error_code(said, word, code) if failed else None,
        refunded=failed and code == REFUNDED_CODE,
    )


def _said(envelope: Envelope) -> dict[str, object]:
    """Lay the fields that the data holds over those around it."""
    data = fields(envelope.data)
    return {**envelope.fields, **{name: value for name, value in data.items() if value not in (None, "")}}


def _read_word(said: Mapping[str, object]) -> str | None:
    words = (read_text(said.get(name), WORD_LENGTH) for name in ("callbacktype", "status"))
    return next(filter(None, words), None)


def _stage(word: str | None, clips: Sequence[ReportedClip]) -> Stage:
    stage = STAGES.get((word or "").lower(), Stage.running)
    ready = [clip.has_audio for clip in clips]
    if stage is Stage.succeeded and not any(ready):
        return Stage.unclear
    if stage is Stage.unclear and ready and all(ready):
        return Stage.succeeded
    return stage


def _read_message(error: object, message: str | None, word: str | None) -> str | None:
    """Return what explains most. The envelope of a poll says "success" about failures too."""
    text = read_text(error, MESSAGE_LENGTH)
    told = (text and redact(text), message, word)
    return next((line for line in told if line and line.lower() != "success"), None)


def _error_code(said: Mapping[str, object], word: str | None, code: int | None) -> str:
    signs = (word, read_text(said.get("errorcode"), WORD_LENGTH), str(code))
    named = (ERROR_CODES.get(sign.lower()) for sign in signs if sign)
    return next(filter(None, named), "upstream_failed")


def _find_clips(value: object, depth: int = 4) -> Sequence[object]:
    """Return the list of clips, which lies deeper in a poll than in a callback, and may be text or an object."""
    value = unpacked(value)
    if isinstance(value, list):
        return [item for item in map(unpacked, value[:MAX_CLIPS]) if isinstance(item, dict)]
    named = fields(value)
    inner = next((named[name] for name in LIST_NAMES if named.get(name)), None)
    if inner is not None:
        return _find_clips(inner, depth - 1) if depth else []
    if named.keys() & CLIP_NAMES:
        return [named]
    return [item for name, item in named.items() if name.isdigit() and isinstance(item, dict)][:MAX_CLIPS]


def _read_clip(item: object) -> ReportedClip:
    named = fields(item)
    return ReportedClip(
        upstream_clip_id=read_id(named.get("id")),
        title=read_text(named.get("title"), TEXT_LENGTH),
        tags=read_text(named.get("tags"), TEXT_LENGTH),
        duration=_read_duration(named.get("duration")),
        model_name=read_text(named.get("modelname"), WORD_LENGTH),
        image_url=read_url(named.get("imageurl")),
        audio_url=read_url(named.get("audiourl")),
        source_audio_url=read_url(named.get("sourceaudiourl")),
    )


def _read_duration(value: object) -> float | None:
    seconds = read_number(value)
    return seconds if seconds is not None and 0 < seconds <= MAX_CLIP_SECONDS else None
