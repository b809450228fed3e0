"""The faults that can be asked for, as a table, and how a prompt or an option asks for them."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["Submit", "Callback", "Poll", "Audio", "Account"]
How = Literal["envelope", "status", "page", "empty", "reset", "hang"]

CODES: Mapping[int, str] = {
    400: "Invalid parameters",
    401: "Unauthorized access",
    402: "Insufficient credits",
    404: "Invalid request method or path",
    405: "Rate limit exceeded",
    409: "Conflict",
    413: "Theme or prompt too long",
    422: "Validation error",
    429: "Insufficient credits",
    430: "Your call frequency is too high. Please try again later.",
    433: "Too many requests, please try again later",
    455: "System maintenance",
    500: "Server error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
    505: "Wrong version",
}
"""The upstream's codes and the messages that go with them."""


@dataclass(frozen=True)
class BadAnswer:
    """An answer that takes the place of the right one."""

    how: How
    code: int = 200
    message: str | None = None


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    group: Group
    does: str
    value: str | None = None
    """What `=VALUE` means: `times`, `seconds`, `code` or `MB`; None if it takes none."""
    default: float | None = None
    """The value if none is given; None stands for ever."""
    instead: BadAnswer | None = None
    """The answer given instead of the right one."""
    creates: bool = False
    """Of submit faults: whether the task is created, and charged, all the same."""


def _code_faults() -> dict[str, Fault]:
    return {
        f"code-{code}": Fault(
            "Submit", f'refused with code {code} in HTTP 200: "{msg}"', "times", instead=BadAnswer("envelope", code)
        )
        for code, msg in CODES.items()
    }


def _status_faults() -> dict[str, Fault]:
    return {
        f"http-{status}": Fault(
            "Submit", f"refused with HTTP {status} and no envelope", "times", instead=BadAnswer("status", status)
        )
        for status in (400, 401, 403, 404, 429, 500, 502, 503, 504)
    }


_LOST_ANSWERS: Mapping[str, tuple[str, BadAnswer]] = {
    "accept-then-500": ("answers HTTP 500", BadAnswer("status", 500)),
    "accept-then-502": ("answers HTTP 502", BadAnswer("status", 502)),
    "accept-then-504": ("answers HTTP 504", BadAnswer("status", 504)),
    "accept-then-code-500": ("answers code 500 in HTTP 200", BadAnswer("envelope", 500)),
    "accept-then-reset": ("resets the connection without an answer", BadAnswer("reset")),
    "accept-then-hang": ("never answers", BadAnswer("hang")),
    "accept-then-html": ("answers HTTP 200 with an HTML page", BadAnswer("page", 200)),
    "empty-body": ("answers HTTP 200 with an empty body", BadAnswer("empty", 200)),
}

_SUBMIT = {
    **_code_faults(),
    **_status_faults(),
    "html": Fault("Submit", "refused with an HTTP 403 block page", "times", instead=BadAnswer("page", 403)),
    "reset": Fault("Submit", "creates nothing and resets the connection", "times", instead=BadAnswer("reset")),
    "hang": Fault("Submit", "creates nothing and never answers", "times", instead=BadAnswer("hang")),
    "retry-after": Fault("Submit", "HTTP 429 with Retry-After until that time is over", "seconds", 5),
    **{
        name: Fault("Submit", f"creates the task, then {does}", "times", instead=bad, creates=True)
        for name, (does, bad) in _LOST_ANSWERS.items()
    },
    "slow": Fault("Submit", "creates the task at once and answers late", "seconds", 5, creates=True),
    "drip": Fault("Submit", "creates the task and sends the answer byte by byte over that time", "seconds", 5),
    "huge-answer": Fault("Submit", "creates the task and pads the answer to that size", "MB", 10),
    "string-code": Fault("Submit", 'creates the task and answers with code "200" as a string'),
    "snake-case-answer": Fault("Submit", "creates the task and names its id task_id"),
    "no-task-id": Fault("Submit", "creates the task and answers code 200 with data null"),
    "odd-types": Fault("Submit", "creates the task and answers code 200 with a list for data"),
    "callback-before-answer": Fault("Submit", "answers only after the first callback was sent"),
}

_CALLBACK = {
    "drop-callbacks": Fault("Callback", "sends none"),
    "only-complete": Fault("Callback", "skips text and first"),
    "repeat-callbacks": Fault("Callback", "sends each that many times", "times", 2),
    "reorder-callbacks": Fault("Callback", "sends complete, first, text, in this order"),
    "delay-callbacks": Fault("Callback", "sends each that much later", "seconds", 5),
    "second-callback": Fault("Callback", "adds one of type second between first and complete"),
    "unknown-type": Fault("Callback", "gives every callback a type nobody knows"),
    "upper-case-type": Fault("Callback", "writes the type in capitals"),
    "poll-shaped": Fault("Callback", "posts the body of record-info"),
    "camel-case": Fault("Callback", "writes taskId, audioUrl and so on"),
    "top-level-id": Fault("Callback", "puts the task id at the top of the body"),
    "missing-id": Fault("Callback", "leaves the task id out"),
    "wrong-id": Fault("Callback", "names another task"),
    "callback-string-code": Fault("Callback", 'writes the code as a string, "200"'),
    "digit-times": Fault("Callback", "writes createTime as a string of epoch milliseconds"),
    "null-data": Fault("Callback", "carries null for the clips"),
    "empty-data": Fault("Callback", "carries an empty list for the clips"),
    "malformed-callback": Fault("Callback", "cuts the JSON off in the middle"),
    "failed": Fault("Callback", "the task fails with that code", "code", 500),
    "failed-as-complete": Fault("Callback", "the task fails with that code, told as type complete", "code", 500),
    "create-failed": Fault("Callback", "the task fails as CREATE_TASK_FAILED, code 500"),
    "sensitive": Fault("Callback", "the task fails as SENSITIVE_WORD_ERROR, code 400"),
    "refunded": Fault("Callback", "the task fails with code 531 and its credits come back"),
}

_POLL = {
    "poll-500": Fault("Poll", "HTTP 500", "times", instead=BadAnswer("status", 500)),
    "poll-code-500": Fault("Poll", "code 500 in HTTP 200", "times", instead=BadAnswer("envelope", 500)),
    "poll-throttle": Fault("Poll", "code 405 in HTTP 200", "times", instead=BadAnswer("envelope", 405)),
    "poll-record-null": Fault(
        "Poll", 'code 422 "recordInfo is null"', "times", instead=BadAnswer("envelope", 422, "recordInfo is null")
    ),
    "poll-null": Fault("Poll", "code 200 with data null", "times", instead=BadAnswer("envelope", 200, "success")),
    "poll-html": Fault("Poll", "an HTTP 403 block page", "times", instead=BadAnswer("page", 403)),
    "poll-empty": Fault("Poll", "HTTP 200 with an empty body", "times", instead=BadAnswer("empty", 200)),
    "poll-reset": Fault("Poll", "the connection is reset", "times", instead=BadAnswer("reset")),
    "poll-hang": Fault("Poll", "no answer ever", "times", instead=BadAnswer("hang")),
    "poll-slow": Fault("Poll", "answers late", "seconds", 5),
    "poll-stale": Fault("Poll", "PENDING, whatever has happened", "times"),
    "poll-lies": Fault("Poll", "SUCCESS with null for every audioUrl", "times"),
    "poll-callback-exception": Fault("Poll", "CALLBACK_EXCEPTION once complete, with the audio"),
    "poll-callback-exception-bare": Fault("Poll", "CALLBACK_EXCEPTION once complete, at first without audio", "times"),
    "poll-odd-status": Fault("Poll", "GENERATING and FAILED for the usual words"),
    "poll-snake-case": Fault("Poll", "writes task_id, audio_url and so on"),
    "poll-response-text": Fault("Poll", "response is a string of JSON"),
    "lyrics-null": Fault("Poll", "the lyrics call answers alignedWords null"),
    "lyrics-500": Fault("Poll", "the lyrics call answers code 500"),
}

_AUDIO = {
    **{
        f"audio-{status}": Fault("Audio", f"HTTP {status}", "times", instead=BadAnswer("status", status))
        for status in (403, 404, 410, 441, 500)
    },
    "audio-empty": Fault("Audio", "HTTP 200 with an empty body", "times", instead=BadAnswer("empty", 200)),
    "audio-html": Fault("Audio", "HTTP 200 with an HTML page", "times", instead=BadAnswer("page", 200)),
    "audio-hang": Fault("Audio", "no answer ever", "times", instead=BadAnswer("hang")),
    "audio-reset": Fault("Audio", "the connection is reset", "times", instead=BadAnswer("reset")),
    "audio-truncated": Fault("Audio", "the connection breaks after half of the promised bytes", "times"),
    "audio-cut": Fault("Audio", "half of the file, with a Content-Length that agrees", "times"),
    "audio-slow": Fault("Audio", "the file comes in drops over that time", "seconds", 5),
    "audio-too-large": Fault("Audio", "the file is padded to that size", "MB", 60),
    "audio-source-only": Fault("Audio", "audio_url is HTTP 404, source_audio_url works"),
    "audio-mislabelled": Fault("Audio", "a WAV file is called .mp3 and audio/mpeg"),
    "audio-redirect": Fault("Audio", "HTTP 302 to another path of this host"),
    "audio-expired-then-fresh": Fault("Audio", "links answer HTTP 403; after that, record-info gives working ones"),
}

_ACCOUNT = {
    "no-credits": Fault("Account", "empties the account, from this submit on, for that time", "seconds"),
    "credits-falling": Fault("Account", "this task takes all credits that were left"),
    "key-revoked": Fault("Account", "the key stops working, from this submit on, for that time", "seconds"),
    "maintenance": Fault("Account", "code 455 to everything, from this submit on, for that time", "seconds"),
}

FAULTS: Mapping[str, Fault] = {**_SUBMIT, **_CALLBACK, **_POLL, **_AUDIO, **_ACCOUNT}

Chosen = Mapping[str, float | None]
"""The faults of one task and their values; None means that the fault never ends by itself."""

_TAG = re.compile(r"\[fault:([^\]]*)\]", re.IGNORECASE)
_TERM = re.compile(r"(?P<name>[a-z0-9-]+)(=(?P<value>\d+(\.\d+)?))?(:(?P<chance>[01]?\.?\d+))?")


class FaultRefused(ValueError):
    """A fault was asked for that does not exist, or in a way that cannot be read."""


@dataclass(frozen=True)
class Term:
    """One fault as asked for: `name`, `name=value`, `name:probability` or `name=value:probability`."""

    name: str
    value: float | None
    chance: float


def parse_terms(text: str) -> tuple[Term, ...]:
    """Read a comma list of faults; raise FaultRefused for what is not in the table."""
    return tuple(_parse_term(term.strip().lower()) for term in text.split(",") if term.strip())


def terms_in_prompt(prompt: str) -> tuple[Term, ...] | None:
    """The faults that a prompt's tags ask for, or None if it has no tag."""
    tags = _TAG.findall(prompt)
    return parse_terms(",".join(tags)) if tags else None


def without_tags(prompt: str) -> str:
    """The prompt as it sounds."""
    return " ".join(_TAG.sub(" ", prompt).split())


def draw(terms: tuple[Term, ...], rng: random.Random) -> Chosen:
    """Decide which of these faults one submit meets."""
    return {term.name: term.value for term in terms if term.chance >= 1 or rng.random() < term.chance}


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    fault = FAULTS.get(match["name"]) if match else None
    if match is None or fault is None:
        raise FaultRefused(f"unknown fault {text!r}; known are: {', '.join(FAULTS)}")
    if match["value"] is not None and fault.value is None:
        raise FaultRefused(f"fault {match['name']!r} takes no value")
    chance = float(match["chance"] or 1)
    if chance > 1:
        raise FaultRefused(f"the probability of fault {match['name']!r} is above 1")
    return Term(match["name"], float(match["value"]) if match["value"] else fault.default, chance)
