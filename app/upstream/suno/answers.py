"""Reading the answers to submits, credit look-ups and lyrics requests."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from app.upstream.suno.envelope import read_reply
from app.upstream.suno.parsing import fields, read_number, read_text
from app.upstream.types import CreditsAnswer, LyricsAnswer, LyricWord, ReadVerdict, SubmitAnswer, Verdict

MAX_CREDITS = 1e12
MAX_WORDS = 10_000
WORD_LENGTH = 500

READ_VERDICTS: Mapping[Verdict, ReadVerdict] = {
    Verdict.throttled: ReadVerdict.throttled,
    Verdict.held: ReadVerdict.held,
}


def read_submit(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> SubmitAnswer:
    """Return what became of a submit. A success without a readable id is ambiguous: it may be charged."""
    reply = read_reply(status, headers, body, now)
    verdict = reply.ruling.verdict
    upstream_task_id = reply.envelope.task_id if verdict is Verdict.created else None
    if verdict is Verdict.created and upstream_task_id is None:
        verdict = Verdict.ambiguous
    return SubmitAnswer(
        verdict, upstream_task_id, reply.code, reply.message, reply.retry_after, reply.ruling.hold_reason
    )


def read_credits(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> CreditsAnswer:
    """Return the credits that are left, which come in fractions."""
    reply = read_reply(status, headers, body, now)
    if reply.envelope.code == 200:
        amount = _read_amount(reply.envelope.fields.get("data"))
        kind = ReadVerdict.failed if amount is None else ReadVerdict.read
        return CreditsAnswer(kind, amount, reply.code, reply.message)
    kind = READ_VERDICTS.get(reply.ruling.verdict, ReadVerdict.failed)
    return CreditsAnswer(kind, None, reply.code, reply.message, reply.retry_after, reply.ruling.hold_reason)


def read_lyrics(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> LyricsAnswer:
    """Return the words of a clip with their times. None at all is normal for sounds."""
    reply = read_reply(status, headers, body, now)
    if reply.envelope.code == 200:
        words = _read_words(fields(reply.envelope.data).get("alignedwords"))
        return LyricsAnswer(ReadVerdict.read, words, reply.code, reply.message)
    kind = READ_VERDICTS.get(reply.ruling.verdict, ReadVerdict.failed)
    return LyricsAnswer(kind, (), reply.code, reply.message, reply.retry_after, reply.ruling.hold_reason)


def _read_amount(value: object) -> Decimal | None:
    number = read_number(value)
    if number is None or abs(number) > MAX_CREDITS:
        return None
    return Decimal(str(number))


def _read_words(value: object) -> tuple[LyricWord, ...]:
    items = value if isinstance(value, list) else []
    words = (_read_word(item) for item in items[:MAX_WORDS])
    return tuple(word for word in words if word is not None)


def _read_word(item: object) -> LyricWord | None:
    named = fields(item)
    word = read_text(named.get("word"), WORD_LENGTH)
    start, end = read_number(named.get("starts")), read_number(named.get("ends"))
    if word is None or start is None or end is None or not 0 <= start <= end:
        return None
    return LyricWord(word, start, end)
